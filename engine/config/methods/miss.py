"""MiSS: matrix shard sharing, Kang and Yin 2024 (arXiv:2409.15371)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loratory.engine.config.methods.base import PeftMethod, cross_field_rule
from loratory.engine.section import Section, setting

if TYPE_CHECKING:
    from loratory.engine.config.run import AdapterConfig, RunConfig


class MissSettings(Section):
    """Settings of MiSS."""

    miss_dropout: float = setting(0.0, "MiSS dropout", ge=0.0, lt=1.0)
    """Share of adapter inputs dropped while training."""
    init_weights: Literal["balance", "bat", "mini"] = setting("balance", "Variant")
    """balance is fast and suits most tasks; bat updates nonlinearly, with large matrices; mini trains fewer numbers."""
    mini_r: int = setting(1, "Width of mini", ge=1, le=1024)
    """Outputs that share an update in the variant mini; must divide them."""


@cross_field_rule("adapter.init_weights")
def _bat_on_quantized(config: RunConfig) -> Iterator[str]:
    quantization = config.model.quantization
    if config.adapter.init_weights == "bat" and quantization != "none":
        yield f"bat multiplies the weights themselves, which are held in {quantization}; take balance, or no quantization."


class Miss(PeftMethod):
    """One matrix for each layer, which all shards of the weight share."""

    name = "miss"
    label = "MiSS"
    help = "MiSS trains one thin matrix per layer, which all shards of the weight share. Less memory than LoRA."
    peft_type = "MISS"
    peft_class = "MissConfig"
    fields = ("r", "miss_dropout", "target_modules", "modules_to_save", "init_weights", "mini_r")
    advanced = fields[3:]
    defaults: ClassVar[Mapping[str, Any]] = {"r": 64}
    same_on_warm_start = ("r", "init_weights", "mini_r")
    layer_kinds = frozenset({"linear"})
    card: ClassVar[Mapping[str, str]] = {"Rank": "{r}", "Variant": "{init_weights}"}
    tensor_marks = ("miss_",)
    rules = (_bat_on_quantized,)

    def layer_problem(self, adapter: AdapterConfig, in_features: int, out_features: int) -> tuple[str, str] | None:
        """Return what `MissLayer.update_layer` would refuse."""
        if adapter.r > in_features:
            return "adapter.r", f"{adapter.r} is more than the {in_features:,} inputs of a layer; lower it."
        if adapter.init_weights == "bat":
            inputs = _divides("r", adapter.r, in_features, "inputs")
            return inputs or _divides("r", adapter.r, out_features, "outputs")
        if adapter.init_weights == "mini":
            return _divides("mini_r", adapter.mini_r, out_features, "outputs")
        return None

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments of `MissConfig`, which calls its standard variant True."""
        arguments = super().peft_arguments(adapter)
        return arguments | ({"init_weights": True} if adapter.init_weights == "balance" else {})


def _divides(name: str, value: int, features: int, kind: str) -> tuple[str, str] | None:
    if features % value == 0:
        return None
    return (
        f"adapter.{name}",
        f"{value} does not divide the {features:,} {kind} of a layer; choose a divisor, such as 8.",
    )
