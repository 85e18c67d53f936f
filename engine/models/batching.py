"""Whether rows are joined or padded: one rule for the trainer, the estimate and the exported script."""

from dataclasses import dataclass
from typing import Literal

from loratory.engine.config.objectives import objective_of
from loratory.engine.config.optimizations import is_wanted
from loratory.engine.config.run import RunConfig
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import version_parts
from loratory.engine.hardware.libraries import library_version
from loratory.engine.models.shape import AttentionSupport, ModelShape

Batching = Literal["joined", "padded"]
FLASH_ATTENTION = "flash_attention_2"
VARLEN_ATTENTION = "loratory_varlen"  # PyTorch's kernel for joined rows, among transformers' attention functions

_FIRST_WITH_VARLEN = (2, 13)  # torch.nn.attention.varlen with windows and heads that share keys
_LARGEST_HEAD = 256  # that flash attention takes

# In these, a token sees other tokens through attention alone. Others carry a state or a convolution from row to row, or
# look at blocks of positions.
_SEPARABLE_LAYERS = frozenset({"full_attention", "sliding_attention"})

# Families that keep their window in the mask alone, which our attention does not read; the rest also pass it to attention.
_WINDOW_IN_THE_MASK = frozenset({"phimoe", "qwen2_moe"})


@dataclass(frozen=True)
class AttentionFacts:
    """What of a model decides how its rows are batched. Names as in transformers' text configuration."""

    model_type: str
    layer_types: tuple[str, ...]
    sliding_window: int | None
    support: AttentionSupport
    head_dim: int = 64
    attention_dropout: float = 0.0

    @classmethod
    def of_shape(cls, shape: ModelShape, support: AttentionSupport | None = None) -> "AttentionFacts":
        """Return those of an architecture; `support` as its class declares it, where the shape does not have it."""
        window, support = shape.sliding_window, support or shape.attention_support
        return cls(shape.model_type, shape.layer_types, window, support, shape.head_dim, shape.attention_dropout)

    @property
    def sees_rows_apart(self) -> bool:
        """Whether its layers can keep joined rows apart at all, whatever computes attention."""
        support = self.support
        return (
            support.passes_arguments
            and support.has_flash
            and support.is_causal
            and _SEPARABLE_LAYERS.issuperset(self.layer_types)
        )

    def window_is_in_the_mask(self, max_length: int) -> bool:
        """Return whether some rows are longer than a window that only a mask keeps."""
        window = self.sliding_window
        return self.model_type in _WINDOW_IN_THE_MASK and bool(window) and (window or 0) < max_length


PLAIN_ATTENTION = AttentionFacts("llama", (), None, AttentionSupport())


def can_run_flash_attention(config: RunConfig, device: Device) -> bool:
    """Return whether FlashAttention 2 runs there: at 16 bits, on GPUs of the generation that first multiplied bfloat16.

    Source: flash_attn's README, "NVIDIA CUDA Support".
    """
    return device.kind == "cuda" and device.has_fast_bfloat16 and config.model.compute_dtype != "float32"


def expected_attention(support: AttentionSupport, config: RunConfig, device: Device, *, has_flash_package: bool) -> str:
    """Return the attention that a run gets on a device, as transformers names it.

    Source: `choose_attention`, engine/training/build.py; `get_correct_attn_implementation`, transformers/modeling_utils.py.
    """
    setting = config.model.attn_implementation
    if setting != "auto":
        return setting
    if has_flash_package and support.has_flash and can_run_flash_attention(config, device):
        return FLASH_ATTENTION
    return "sdpa" if support.has_sdpa else "eager"


def takes_varlen_attention(facts: AttentionFacts, attention: str, config: RunConfig, device: Device) -> bool:
    """Return whether joined rows go through PyTorch's own kernel, where transformers would use `attention`.

    The worker tries it before it uses it.

    Source: `varlen_attn`, torch/nn/attention/varlen.py; sizes of heads as in `check_head_dim_size_flash`, sdp_utils.cpp.
    """
    return (
        attention == "sdpa"
        and is_wanted("varlen_attention")
        and can_run_flash_attention(config, device)
        and version_parts(library_version("torch") or "") >= _FIRST_WITH_VARLEN
        and facts.head_dim <= _LARGEST_HEAD
        and facts.head_dim % 8 == 0
        and not facts.attention_dropout
    )


def needs_mask(facts: AttentionFacts, attention: str, config: RunConfig) -> bool:
    """Return whether padded rows need a padding mask.

    Causal attention needs none for rows that are padded at their end: no trained token sees padding. Virtual tokens are
    in the mask, some families have a state or a window that depends on it, and attention that is written out has its
    causality from it.
    """
    return (
        not is_wanted("unmasked_rows")
        or attention != "sdpa"
        or config.adapter.traits.virtual_tokens != "none"
        or not facts.sees_rows_apart
        or facts.window_is_in_the_mask(config.training.max_length)
    )


def choose_batching(facts: AttentionFacts, attention: str, config: RunConfig, device_kind: str) -> Batching:
    """Return how rows become batches: joined into one sequence without padding, or padded side by side.

    Without a kernel for joined rows on a GPU, padding is cheaper than one small product for each row, unless rows are packed.
    The worker tries joined rows before it uses them; with transformers' own architectures, that agrees.
    """
    # Virtual tokens would come before the first row only.
    if config.adapter.traits.virtual_tokens != "none" or not facts.sees_rows_apart:
        return "padded"
    if attention.startswith("flash_attention"):
        return "joined"
    if attention != VARLEN_ATTENTION and device_kind != "cpu" and not config.training.packing:
        return "padded"
    if facts.window_is_in_the_mask(config.training.max_length):
        return "padded"
    return "joined" if attention in ("sdpa", VARLEN_ATTENTION) else "padded"


def shares_prompts(batching: Batching, config: RunConfig, device_kind: str) -> bool:
    """Whether several answers follow one prompt, which goes through the model once: in our own attention on a CPU."""
    objective = objective_of(config)
    has_several = objective.sequences_per_example > 1 or objective.samples_answers
    own_attention = (
        batching == "joined" and device_kind == "cpu" and not config.model.attn_implementation.startswith("flash")
    )
    return has_several and own_attention and is_wanted("shared_prompts")
