"""How the GPUs of a run share the work: what each way means, and which settings of the run section choose it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.config.objectives import objective_of
from engine.config.run import RunConfig, RunSection

DistributionName = Literal["DDP", "FSDP", "device_map"]  # as PyTorch, transformers and people call them

# Their state is a tensor of the parameter's shape for each, which is divided as the parameter is.
SHARDED_OPTIMIZERS = frozenset({"adamw_torch", "adamw_torch_fused", "sgd"})


@dataclass(frozen=True)
class Distribution:
    """One way of training on several GPUs."""

    name: DistributionName
    label: str
    meaning: str  # one or two sentences
    settings: Mapping[str, str]  # of the run section

    def changes(self, devices: Iterable[int]) -> dict[str, Any]:
        """Return what choosing it on these devices changes in a configuration."""
        return {"run.devices": list(devices), **{f"run.{name}": value for name, value in self.settings.items()}}


DISTRIBUTIONS: Mapping[DistributionName, Distribution] = {
    one.name: one
    for one in (
        Distribution(
            "DDP",
            "One copy per GPU",
            "Each device holds the whole model and trains on its own rows.",
            {"launcher": "accelerate", "device_map": "none", "fsdp": "none"},
        ),
        Distribution(
            "FSDP",
            "Sharded",
            "Weights, gradients and optimizer state are divided; each layer is put together while it runs.",
            {"launcher": "accelerate", "device_map": "none", "fsdp": "full_shard"},
        ),
        Distribution(
            "device_map",
            "Layers split",
            "Each device holds some of the layers, and they work in turn: for models that one cannot hold.",
            {"launcher": "local", "device_map": "balanced", "fsdp": "none"},
        ),
    )
}


def distribution_of(run: RunSection) -> Distribution | None:
    """Return how a run uses several GPUs of this machine; None where it names one or none."""
    if isinstance(run.devices, str) or len(run.devices) < 2:
        return None
    distribution = (
        one
        for one in DISTRIBUTIONS.values()
        if all(getattr(run, name) == value for name, value in one.settings.items())
    )
    return next(distribution, None)


_PROCESSES: Mapping[str, Callable[[RunConfig], int]] = {
    "local": lambda config: config.run.processes,
    "slurm": lambda config: config.slurm.nodes * (1 if config.run.devices == "cpu" else config.slurm.gpus),
}


def count_processes(config: RunConfig) -> int:
    """Return how many processes train a run together, wherever it runs: one for each GPU."""
    count = _PROCESSES.get(config.run.where)
    return count(config) if count is not None else 1


def sharding_problem(config: RunConfig) -> str | None:
    """Return why FSDP2 cannot divide what a run trains, as a sentence with its fix; None where it can."""
    method, model, training = config.adapter.traits, config.model, config.training
    if not method.shardable:
        return f"{method.label} cannot be sharded; use LoRA or full fine-tuning, or one copy per GPU (fsdp none)."
    if model.quantization == "int8":
        return "FSDP2 divides floating-point numbers alone, and int8 weights are none; set quantization to nf4 or none."
    if not objective_of(config).shardable:
        return (
            f"{training.objective} also passes answers behind other prompts through the model, of which processes of a sharded run "
            "have unequally many; use one copy per GPU (fsdp none)."
        )
    if training.optim not in SHARDED_OPTIMIZERS:
        return f"{training.optim} keeps state that cannot be divided as the weights are; set optim to adamw_torch."
    return None
