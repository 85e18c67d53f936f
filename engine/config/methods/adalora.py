"""AdaLoRA: Zhang et al. 2023 (arXiv:2303.10512)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from engine.config.methods.base import PairRule, PeftMethod
from engine.config.section import Section, setting

if TYPE_CHECKING:
    from engine.config.run import AdapterConfig, RunConfig


class AdaLoraSettings(Section):
    """Settings of AdaLoRA."""

    init_r: int = setting(
        12,
        label="First rank",
        help="Rank of every layer before the budget falls; half more than target_r is usual.",
        ge=2,
        le=1024,
    )
    target_r: int = setting(
        8,
        label="Average rank",
        help="Rank that remains for each layer on average; important layers keep more.",
        ge=1,
        le=1023,
    )
    tinit: int = setting(
        0,
        label="Steps before pruning",
        help="Optimizer steps before ranks begin to fall. A tenth of all steps suits most runs.",
        ge=0,
    )
    tfinal: int = setting(
        0,
        label="Steps after pruning",
        help="Last optimizer steps, in which ranks stay. A third of all steps suits most runs.",
        ge=0,
    )
    deltaT: int = setting(  # noqa: N815 - as PEFT spells it
        1, label="Prune every", help="Optimizer steps between two allocations of ranks.", ge=1
    )
    beta1: float = setting(
        0.85,
        label="Sensitivity smoothing",
        help="How slowly the importance of a weight follows its gradients.",
        ge=0.0,
        lt=1.0,
    )
    beta2: float = setting(
        0.85,
        label="Uncertainty smoothing",
        help="How slowly the uncertainty of that importance follows.",
        ge=0.0,
        lt=1.0,
    )
    orth_reg_weight: float = setting(
        0.5,
        label="Orthogonality",
        help="Weight in the loss of how far the singular vectors are from orthogonal. 0 leaves it out.",
        ge=0.0,
        le=1000.0,
    )


class AdaLora(PeftMethod):
    """LoRA as a singular value decomposition whose rank moves to the layers that need it."""

    name = "adalora"
    label = "AdaLoRA"
    help = "AdaLoRA starts with a higher rank and prunes it, layer by layer, to an average. Needs a few hundred steps."
    peft_type = "ADALORA"
    peft_class = "AdaLoraConfig"
    fields = (
        "init_r",
        "target_r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "tinit",
        "tfinal",
        "deltaT",
        "modules_to_save",
        "beta1",
        "beta2",
        "orth_reg_weight",
    )
    advanced = ("modules_to_save", "beta1", "beta2", "orth_reg_weight")
    defaults: ClassVar[Mapping[str, Any]] = {"lora_alpha": 8}
    same_on_warm_start = ("init_r", "lora_alpha")
    tensor_marks = ("lora_",)
    script_callback = "AllocateRanks"
    regularized = True

    def summary(self, adapter: AdapterConfig) -> str:
        """Return first and average rank."""
        return f"r {adapter.init_r} to {adapter.target_r}"

    def card_rows(self, adapter: AdapterConfig) -> list[tuple[str, str]]:
        """Return ranks, alpha, dropout and layers."""
        numbers = f"{adapter.init_r} to {adapter.target_r}, {adapter.lora_alpha}, {adapter.lora_dropout:g}"
        return [("Rank, alpha, dropout", numbers), *super().card_rows(adapter)]

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments; how many steps there are is known when the trainer has planned them."""
        return super().peft_arguments(adapter) | {"total_step": adapter.tinit + adapter.tfinal + 1}


def _ranks_that_do_not_fall(config: RunConfig) -> str | None:
    adapter = config.adapter
    if isinstance(adapter.traits, AdaLora) and adapter.target_r >= adapter.init_r:
        return f"{adapter.target_r} is not below init_r, which is {adapter.init_r}; lower it, or use LoRA."
    return None


def _no_step_to_prune_in(config: RunConfig) -> str | None:
    adapter, steps = config.adapter, config.training.max_steps
    if isinstance(adapter.traits, AdaLora) and 0 < steps <= adapter.tinit + adapter.tfinal:
        return too_few_steps(adapter.tinit, adapter.tfinal, steps)
    return None


def too_few_steps(tinit: int, tfinal: int, steps: int) -> str:
    """Return why ranks cannot be allocated in so few optimizer steps."""
    return (
        f"{tinit} steps before and {tfinal} after pruning leave none of {steps:,} to prune in; "
        "lower tinit or tfinal, or train for more steps."
    )


AdaLora.rules = (
    PairRule("adapter.target_r", ("adapter.method", "adapter.target_r", "adapter.init_r"), _ranks_that_do_not_fall),
    PairRule(
        "adapter.tinit",
        ("adapter.method", "adapter.tinit", "adapter.tfinal", "training.max_steps"),
        _no_step_to_prune_in,
    ),
)
