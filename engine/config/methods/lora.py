"""LoRA with its variants DoRA and rank-stabilized scaling, Hu et al. 2021 (arXiv:2106.09685), and VeRA, vector-based
random matrix adaptation, Kopiczko et al. 2024 (arXiv:2310.11454).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loratory.engine.config.methods.base import ComparisonRow, PeftMethod, cross_field_rule
from loratory.engine.section import Magnitude, Section, setting

if TYPE_CHECKING:
    from loratory.engine.config.run import AdapterConfig, RunConfig


class LoraSettings(Section):
    """Settings of LoRA."""

    lora_alpha: int = setting(32, "Alpha", ge=1, le=4096)
    """Strength of the adapter: its update is multiplied by lora_alpha / r. Twice the rank is the usual choice."""
    lora_dropout: float = setting(0.0, "Dropout", ge=0.0, lt=1.0)
    """Share of adapter inputs dropped while training, against memorising small datasets. Costs speed."""
    bias: Literal["none", "all", "lora_only"] = setting("none", "Biases")
    """Which biases are trained as well. With anything but none, switching the adapter off no longer gives the base."""
    use_rslora: bool = setting(False, "Rank-stabilized scaling")
    """Scales by lora_alpha / √r instead of lora_alpha / r, which keeps high ranks effective."""
    use_dora: bool = setting(False, "DoRA")
    """Learns the magnitude of each weight apart from its direction. Often better at low rank, slower by a third."""


@cross_field_rule("adapter.bias")
def _biases_of_quantized_layers(config: RunConfig) -> Iterator[str]:
    if config.adapter.bias != "none" and config.model.quantization != "none":
        yield (
            f"bitsandbytes rounds the biases of layers with {config.model.quantization} weights to 16 bits at every pass, "
            "which loses most of what they learn; set bias to none, or quantization to none."
        )


class Lora(PeftMethod):
    """Two thin matrices next to each chosen layer."""

    name = "lora"
    label = "LoRA"
    help = "LoRA trains two thin matrices next to each chosen layer and leaves the model itself untouched."
    four_bit_label = "QLoRA"  # Dettmers et al. 2023 (arXiv:2305.14314)
    four_bit_help = "QLoRA is LoRA on a model whose frozen weights are held in four bits."
    peft_type = "LORA"
    peft_class = "LoraConfig"
    advanced = ("modules_to_save", "bias", "use_rslora", "use_dora")
    fields = ("r", "lora_alpha", "lora_dropout", "target_modules", *advanced)
    layer_kinds = frozenset({"linear", "conv1d", "embedding"})
    same_on_warm_start = ("r", "lora_alpha", "use_rslora", "use_dora", "bias")
    card: ClassVar[Mapping[str, str]] = {"Rank, alpha, dropout": "{r}, {lora_alpha}, {lora_dropout:g}"}
    tensor_marks = ("lora_",)
    shardable = True
    rules = (_biases_of_quantized_layers,)

    @property
    def comparison_rows(self) -> tuple[ComparisonRow, ...]:
        """Return a row for each format of the frozen weights."""
        return (
            ComparisonRow("LoRA", "none"),
            ComparisonRow("LoRA on int8", "int8"),
            ComparisonRow("QLoRA", "nf4", False),
            ComparisonRow("QLoRA with checkpointing", "nf4", True),
        )

    def peft_arguments(self, adapter: AdapterConfig) -> dict[str, Any]:
        """Return the arguments of `LoraConfig`; switches that are off are left out."""
        arguments = super().peft_arguments(adapter)
        optional = {"lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False}
        return {name: value for name, value in arguments.items() if value != optional.get(name, ...)}

    def has_quick_layers(self, adapter: AdapterConfig) -> bool:
        """Return whether `loratory.engine.training.ops` has layers of its own for it: for all but DoRA."""
        return not adapter.use_dora

    def trains_in_compute_dtype(self, adapter: AdapterConfig) -> bool:
        """Return whether the two matrices are all that is trained: `loratory.engine.training.ops.lora_linear` does its own casts."""
        return not adapter.use_dora and adapter.bias == "none" and not adapter.modules_to_save


# PEFT's LoraConfig.init_lora_weights, without the numbers that may follow.
_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

PLAIN_LORA_FIX = (
    "Convert it to a plain LoRA where it was trained: PEFT's save_pretrained does, with "
    "path_initial_model_for_weight_conversion."
)


def initialization_from_base(adapter_config: dict[str, object]) -> str:
    """Return the initialization that rewrote an adapter's base; empty where its base is as its makers published it.

    Such an adapter only fits the weights that were left over. PEFT recomputes them when it loads the adapter, after which
    the base in memory is the base of nothing else.
    """
    value = adapter_config.get("init_lora_weights")
    return value[:30] if isinstance(value, str) and value.lower().startswith(_FROM_BASE) else ""


class VeraSettings(Section):
    """Settings of VeRA."""

    vera_dropout: float = setting(0.0, "VeRA dropout", ge=0.0, lt=1.0)
    """Share of adapter inputs dropped while training."""
    d_initial: Magnitude = setting(0.1, "First scale", gt=0.0, le=10.0)
    """Where the trained scales begin. 0.1 and less works best."""
    projection_prng_key: int = setting(0, "Projection seed", ge=0, le=2**31 - 1)
    """Draws the two random matrices that all layers share."""
    save_projection: bool = setting(True, "Save projections")
    """Saves the random matrices with the adapter. Without them it is tiny, and they are regenerated on load."""


class Vera(PeftMethod):
    """Two vectors for each layer, which scale random matrices that all layers share."""

    name = "vera"
    label = "VeRA"
    help = "VeRA trains two vectors per layer on random matrices that all layers share: a tiny adapter at a high rank."
    peft_type = "VERA"
    peft_class = "VeraConfig"
    advanced = ("modules_to_save", "d_initial", "projection_prng_key", "save_projection")
    fields = ("r", "vera_dropout", "target_modules", *advanced)
    defaults: ClassVar[Mapping[str, Any]] = {"r": 256}
    learning_rate = 4e-3
    same_on_warm_start = ("r", "projection_prng_key")
    card: ClassVar[Mapping[str, str]] = {"Rank": "{r}", "Projection seed": "{projection_prng_key}"}
    tensor_marks = ("vera_",)
