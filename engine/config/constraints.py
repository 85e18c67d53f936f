"""Settings that depend on each other: how GPUs share the work, and what is fine alone and cannot work together."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loratory.engine.config.methods.base import CrossFieldRule
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import SET_PREFIX, JobsConfig, RunConfig, RunSection, SlurmConfig
from loratory.engine.config.vision import PartTraining
from loratory.engine.errors import Problem

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
    distribution.name: distribution
    for distribution in (
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
        candidate
        for candidate in DISTRIBUTIONS.values()
        if all(getattr(run, name) == value for name, value in candidate.settings.items())
    )
    return next(distribution, None)


def count_processes(config: RunConfig) -> int:
    """Return how many processes train a run together, wherever it runs: one for each GPU."""
    section: JobsConfig | SlurmConfig | None = getattr(config, config.run.where, None)  # of a run target elsewhere
    return config.run.processes if section is None else section.count_processes(config.run)


def sharding_problem(config: RunConfig) -> str | None:
    """Return why FSDP2 cannot divide what a run trains, as a sentence with its fix; None where it can."""
    method, model, training = config.adapter.traits, config.model, config.training
    if not method.shardable:
        return f"{method.label} cannot be sharded; use LoRA or full fine-tuning, or one copy per GPU (fsdp none)."
    if model.quantization == "int8":
        return "FSDP2 shards floating-point weights only, and int8 is not supported; set quantization to nf4 or none."
    if not objective_of(config).shardable:
        return (
            f"{training.objective} also passes answers behind other prompts through the model, of which processes of a sharded run "
            "have unequally many; use one copy per GPU (fsdp none)."
        )
    if training.optim not in SHARDED_OPTIMIZERS:
        return f"{training.optim} keeps state that cannot be divided as the weights are; set optim to adamw_torch."
    return None


_RULES: list[CrossFieldRule] = []


def _rule(field: str) -> Callable[[Callable[[RunConfig], Iterator[str]]], None]:
    """Add a function as a rule whose problem is shown at a field."""
    return lambda explain: _RULES.append(CrossFieldRule(field, explain))


@_rule("training.gradient_checkpointing")
def _method_with_checkpointing(config: RunConfig) -> Iterator[str]:
    method = config.adapter.traits
    if config.training.gradient_checkpointing and not method.gradient_checkpointing:
        yield (
            f"{method.label} cannot be combined with gradient checkpointing, {method.checkpointing_conflict}; "
            "switch one of the two off."
        )


@_rule("adapter.num_virtual_tokens")
def _virtual_tokens_fill_the_context(config: RunConfig) -> Iterator[str]:
    tokens, training = config.adapter.traits.count_virtual_tokens(config.adapter), config.training
    if tokens >= training.max_length:
        yield f"{tokens} virtual tokens leave no room in rows of {training.max_length} tokens; use fewer, 10 to 50 is usual."


@_rule("training.packing")
def _virtual_tokens_with_packing(config: RunConfig) -> Iterator[str]:
    if config.adapter.traits.virtual_tokens != "none" and config.training.packing:
        yield "packing joins rows, and only the first of them would see the virtual tokens; switch packing off."


@_rule("model.quantization")
def _method_on_quantized(config: RunConfig) -> Iterator[str]:
    method, quantization = config.adapter.traits, config.model.quantization
    if quantization == "none" or quantization in method.quantization:
        return
    other = next(other.name for other in METHODS.values() if quantization in other.quantization)
    yield f"{method.label} cannot be trained on {quantization} weights; set quantization to none, or the method to {other}."


@_rule("adapter.warm_start")
def _warm_start_without_adapter(config: RunConfig) -> Iterator[str]:
    if config.adapter.traits.trains_all and config.adapter.warm_start is not None:
        yield "full fine-tuning has no adapter to start from; give the trained folder as model.id instead."


@_rule("training.load_best_model_at_end")
def _best_without_held_out(config: RunConfig) -> Iterator[str]:
    if config.training.load_best_model_at_end and config.dataset.eval_fraction == 0:
        yield "the best weights are those of the lowest held-out loss; set dataset.eval_fraction above 0."


@_rule("training.early_stopping_patience")
def _early_stopping_without_held_out(config: RunConfig) -> Iterator[str]:
    if config.training.early_stopping_patience is not None and config.dataset.eval_fraction == 0:
        yield "stopping early needs a held-out loss; set dataset.eval_fraction above 0, or leave this empty."


@_rule("dataset.train_on")
def _completion_of_conversations(config: RunConfig) -> Iterator[str]:
    dataset = config.dataset
    if dataset.format == "text" and dataset.train_on in ("assistant", "last_assistant", "completion"):
        yield f"plain text has no {dataset.train_on.replace('_', ' ')} part; set train_on to all."


@_rule("training.packing")
def _packed_preferences(config: RunConfig) -> Iterator[str]:
    objective = objective_of(config)
    if config.training.packing and not objective.learns_answers:
        yield (
            f"{objective.label} keeps the answers of a row apart, and joins them without padding anyway where the model can; "
            "switch packing off."
        )


@_rule("training.objective")
def _reference_without_adapter(config: RunConfig) -> Iterator[str]:
    objective = objective_of(config)
    if objective.compares(config) and config.adapter.traits.trains_all:
        instead = "set beta to 0" if objective.samples_answers else "ORPO"
        yield f"{objective.label} compares with the model without its adapter, and full fine-tuning has none; choose LoRA, or {instead}."


@_rule("training.loss_type")
def _losses_of_another_objective(config: RunConfig) -> Iterator[str]:
    objective, losses = objective_of(config), config.training.loss_type
    unknown = [name for name in losses if name not in objective.losses]
    if objective.learns_answers or not losses:
        return
    if not objective.losses:
        yield f"{objective.label} has one loss of its own; leave this empty."
    elif unknown:
        yield f"{objective.label} has no loss {', '.join(unknown)}; choose among {', '.join(objective.losses)}."
    elif len(set(losses)) < len(losses) or (len(losses) > 1 and not objective.adds_losses):
        yield f"{objective.label} takes {'each loss once' if objective.adds_losses else 'one loss'}."


@_rule("training.beta")
def _beta_of_zero(config: RunConfig) -> Iterator[str]:
    objective = objective_of(config)
    if config.training.beta == 0 and "beta" in objective.settings and not objective.samples_answers:
        yield f"{objective.label} has no loss with a beta of 0; 0.1 is usual."


@_rule("training.rewards")
def _no_rewards(config: RunConfig) -> Iterator[str]:
    if objective_of(config).samples_answers and not config.training.rewards:
        yield "grpo learns from rewards alone, and there are none; add at least one scorer, such as equals."


@_rule("run.where")
def _key_elsewhere(config: RunConfig) -> Iterator[str]:
    keys = [key for scorer in config.training.rewards if (key := getattr(scorer, "key_variable", ""))]
    if config.run.is_elsewhere and objective_of(config).samples_answers and keys:
        yield f"the judge's key, {keys[0]}, does not leave this machine; set local, or use a judge without a key."


@_rule("adapter.method")
def _method_that_cannot_answer(config: RunConfig) -> Iterator[str]:
    method = config.adapter.traits
    if objective_of(config).samples_answers and method.count_virtual_tokens(config.adapter):
        yield f"grpo samples answers in batches, which {method.label} with its virtual tokens cannot; choose LoRA."


@_rule("training.generation")
def _adapter_that_vllm_cannot_load(config: RunConfig) -> Iterator[str]:
    adapter = config.adapter
    if not objective_of(config).samples_answers or not config.training.uses_vllm:
        return
    obstacles = {
        "only LoRA that trains its two matrices alone": not adapter.traits.trains_in_compute_dtype(adapter),
        "no ranks above 512": getattr(adapter, "r", 0) > 512,
        "no quantized base that trains": config.model.quantization != "none",
        "no top_p below 1, which its log-probabilities are not of": config.training.top_p < 1,
    }
    yield from [f"vLLM takes {what}; set own." for what, is_so in obstacles.items() if is_so][:1]


@_rule("training.objective")
def _answers_of_several_processes(config: RunConfig) -> Iterator[str]:
    processes = count_processes(config)
    if objective_of(config).samples_answers and (processes > 1 or config.run.spread_over > 1):
        yield "grpo trains on one device so far, and this run takes several; choose one device in run.devices, or dpo."


@_rule("training.loss_weights")
def _weights_without_losses(config: RunConfig) -> Iterator[str]:
    weights, losses = config.training.loss_weights, config.training.loss_type
    if weights and len(weights) != len(losses):
        yield f"there are {len(weights)} weights for {len(losses)} losses; give one for each name in loss_type."


@_rule("training.label_smoothing")
def _exo_without_smoothing(config: RunConfig) -> Iterator[str]:
    if "exo_pair" in config.training.loss_type and config.training.label_smoothing == 0:
        yield "exo_pair divides by it; set it to 0.001, as its authors do."


@_rule("training.precompute_ref_log_probs")
def _precomputed_for_others(config: RunConfig) -> Iterator[str]:
    objective = objective_of(config)
    if config.training.precompute_ref_log_probs and objective.has_reference and not objective.precomputes:
        yield f"{objective.label} puts answers behind other prompts at every step, which cannot be computed before; switch it off."


@_rule("run.device_map")
def _spread_over_one_device(config: RunConfig) -> Iterator[str]:
    if config.run.device_map == "none" or config.run.spread_over > 1:
        return
    devices = config.run.devices
    selection = f"is {devices}" if isinstance(devices, str) else f"names {len(devices)}"
    yield (
        f"{config.run.device_map} divides layers among the GPUs that run.devices names, which {selection}; name two or more "
        "there, such as [0, 1], or set none."
    )


@_rule("run.launcher")
def _spread_by_several_processes(config: RunConfig) -> Iterator[str]:
    if config.run.device_map != "none" and config.run.launcher != "local":
        yield (
            f"with launcher {config.run.launcher} every GPU has a process and a whole model of its own; set the launcher "
            "to local to divide the layers, or device_map to none."
        )


@_rule("run.fsdp")
def _sharded_over_one_process(config: RunConfig) -> Iterator[str]:
    run = config.run
    if run.fsdp == "none":
        return
    if run.device_map != "none":
        yield "it divides each weight, and run.device_map divides the layers; set one of the two to none."
    elif not run.is_elsewhere and run.launcher == "local":
        yield "one process has no other to share the weights with; set run.launcher to accelerate, or none here."
    elif count_processes(config) == 1 and run.devices != "cpu":
        source = (
            "run.devices names; name two or more there, such as [0, 1]"
            if not run.is_elsewhere
            else "the job has; ask for two or more"
        )
        yield f"it shares the weights among the GPUs that {source}, or set none."


@_rule("run.fsdp")
def _what_cannot_be_sharded(config: RunConfig) -> Iterator[str]:
    if config.run.fsdp != "none" and (problem := sharding_problem(config)):
        yield problem


@_rule("training.optim")
def _spread_with_paged_optimizer(config: RunConfig) -> Iterator[str]:
    if config.run.device_map != "none" and config.training.optim.startswith("paged_"):
        yield (
            f"{config.training.optim} waits for one GPU alone before its state moves, and this run's is on several; "
            "adamw_8bit is the nearest."
        )


@_rule("run.devices")
def _device_of_this_machine(config: RunConfig) -> Iterator[str]:
    if config.run.is_elsewhere and not isinstance(config.run.devices, str):
        yield f"it names GPUs of this machine, and a job has its own; set auto, and choose hardware in {config.run.where}."


@_rule("training.report_to")
def _tracker_elsewhere(config: RunConfig) -> Iterator[str]:
    if config.run.is_elsewhere and config.training.report_to:
        yield "a job has no login of a tracker; leave this empty, or train on this machine."


@_rule("dataset.source")
def _set_elsewhere(config: RunConfig) -> Iterator[str]:
    if config.run.where == "jobs" and any(text.startswith(SET_PREFIX) for _, text in config.names):
        yield "a job has no sets; write the version to a file with `loratory data export`, and name that file."


@_rule("vision.min_pixels")
def _pixels_from_more_to_less(config: RunConfig) -> Iterator[str]:
    least, most = config.vision.min_pixels, config.vision.max_pixels
    if least is not None and most is not None and least > most:
        yield f"it is above max_pixels ({most:,}); set at most as many."


@_rule("vision.tower")
def _tower_as_the_method_cannot(config: RunConfig) -> Iterator[str]:
    yield from _part_problem(config, config.vision.tower)


@_rule("vision.projector")
def _projector_as_the_method_cannot(config: RunConfig) -> Iterator[str]:
    yield from _part_problem(config, config.vision.projector)


def _part_problem(config: RunConfig, training: PartTraining) -> Iterator[str]:
    """Yield why a part that sees images cannot be trained so."""
    method = config.adapter.traits
    if training == "frozen":
        return
    if config.run.fsdp != "none":
        yield "FSDP2 cannot divide it, as some passes have no images; set frozen, or one copy per GPU (fsdp none)."
    elif method.trains_all and training == "adapter":
        yield "full fine-tuning has no adapter; set full, or frozen."
    elif not method.trains_all and not method.adapts_layers:
        yield f"{method.label} adapts no layers; set frozen, or choose LoRA."


def constraint_problems(config: RunConfig) -> list[Problem]:
    """List every pair of settings that cannot work."""
    rules = (*_RULES, *config.adapter.traits.rules)
    return [Problem(rule.field, message) for rule in rules for message in rule.explain(config)]
