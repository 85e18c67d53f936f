"""AdaLoRA: Zhang et al. 2023 (arXiv:2303.10512)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from loratory.engine.config.methods.base import PeftMethod, cross_field_rule
from loratory.engine.section import Magnitude, Section, setting

if TYPE_CHECKING:
    from loratory.engine.config.run import AdapterConfig, RunConfig


class AdaLoraSettings(Section):
    """Settings of AdaLoRA."""

    init_r: int = setting(12, "First rank", ge=2, le=1024)
    """Rank of every layer before the budget falls; half more than target_r is usual."""
    target_r: int = setting(8, "Average rank", ge=1, le=1023)
    """Rank that remains for each layer on average; important layers keep more."""
    tinit: int = setting(0, "Steps before pruning", ge=0)
    """Optimizer steps before ranks begin to fall. A tenth of all steps suits most runs."""
    tfinal: int = setting(0, "Steps after pruning", ge=0)
    """Last optimizer steps, in which ranks stay. A third of all steps suits most runs."""
    deltaT: int = setting(1, "Prune every", ge=1)  # noqa: N815 - as PEFT spells it
    """Optimizer steps between two allocations of ranks."""
    beta1: float = setting(0.85, "Sensitivity smoothing", ge=0.0, lt=1.0)
    """How slowly the importance of a weight follows its gradients."""
    beta2: float = setting(0.85, "Uncertainty smoothing", ge=0.0, lt=1.0)
    """How slowly the uncertainty of that importance follows."""
    orth_reg_weight: Magnitude = setting(0.5, "Orthogonality", ge=0.0, le=1000.0)
    """Weight in the loss of how far the singular vectors are from orthogonal. 0 leaves it out."""


def too_few_steps(tinit: int, tfinal: int, steps: int) -> str:
    """Return why ranks cannot be allocated in so few optimizer steps."""
    return (
        f"{tinit} steps before and {tfinal} after pruning leave none of {steps:,} to prune in; "
        "lower tinit or tfinal, or train for more steps."
    )


@cross_field_rule("adapter.target_r")
def _ranks_that_do_not_fall(config: RunConfig) -> Iterator[str]:
    adapter = config.adapter
    if adapter.target_r >= adapter.init_r:
        yield f"{adapter.target_r} is not below init_r, which is {adapter.init_r}; lower it, or use LoRA."


@cross_field_rule("adapter.tinit")
def _no_step_to_prune_in(config: RunConfig) -> Iterator[str]:
    adapter, steps = config.adapter, config.training.max_steps
    if 0 < steps <= adapter.tinit + adapter.tfinal:
        yield too_few_steps(adapter.tinit, adapter.tfinal, steps)


class AdaLora(PeftMethod):
    """LoRA as a singular value decomposition whose rank moves to the layers that need it."""

    name = "adalora"
    label = "AdaLoRA"
    help = "AdaLoRA starts with a higher rank and prunes it, layer by layer, to an average. Needs a few hundred steps."
    peft_type = "ADALORA"
    peft_class = "AdaLoraConfig"
    advanced = ("modules_to_save", "beta1", "beta2", "orth_reg_weight")
    fields = (*"init_r target_r lora_alpha lora_dropout target_modules tinit tfinal deltaT".split(), *advanced)
    defaults: ClassVar[Mapping[str, Any]] = {"lora_alpha": 8}
    same_on_warm_start = ("init_r", "lora_alpha")
    card: ClassVar[Mapping[str, str]] = {
        "Rank, alpha, dropout": "{init_r} to {target_r}, {lora_alpha}, {lora_dropout:g}"
    }
    tensor_marks = ("lora_",)
    has_regularizer = True
    rules = (_ranks_that_do_not_fall, _no_step_to_prune_in)

    def summary(self, adapter: AdapterConfig) -> str:
        """Return first and average rank."""
        return f"r {adapter.init_r} to {adapter.target_r}"

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments; how many steps there are is known when the trainer has planned them."""
        return super().peft_arguments(adapter) | {"total_step": adapter.tinit + adapter.tfinal + 1}
