"""A model as the memory estimate sees it: its modules and their sizes, without a single weight."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

# How single projections of experts were called before transformers stacked them, and the router. PEFT takes these names to
# mean the stacks, whose adapters it multiplies out to the size of all experts at each pass; see engine/DECISIONS.md.
# Source: `_MOE_TARGET_MODULE_MAPPING`, peft/utils/transformers_weight_conversion.py.
EXPERT_PROJECTIONS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})

ModuleKind = Literal["linear", "conv1d", "embedding", "norm", "router", "experts", "other"]


class ModuleShape(BaseModel):
    """One leaf module that owns parameters; read from the real architecture on the meta device."""

    model_config = ConfigDict(frozen=True)

    name: str  # full dotted name, as PEFT sees it
    kind: ModuleKind  # linear and conv1d only for what PEFT adapts as such; a router or experts held as bare parameters not
    class_name: str = ""  # such as Linear, Conv1D, LlamaRMSNorm
    parameters: int  # of its own, tied ones counted at their first owner only
    in_features: int = 0  # of linear-like modules; rows of an embedding; width of a norm
    out_features: int = 0  # of linear-like modules; width of an embedding or a norm
    has_bias: bool = False
    tied_to: str | None = None  # name of the module whose weight it shares
    is_output_head: bool = False
    is_quantizable: bool = False  # whether bitsandbytes replaces it; experts held as bare parameters stay as they are
    bare_parameters: Mapping[str, tuple[int, ...]] = {}  # shapes, of modules that are no known layer, such as experts

    @property
    def bias_parameters(self) -> int:
        return self.out_features if self.has_bias else 0


class AttentionSupport(BaseModel):
    """What an architecture's class in transformers says about its attention; the defaults are those of most decoders."""

    model_config = ConfigDict(frozen=True)

    has_sdpa: bool = True
    has_flash: bool = True
    passes_arguments: bool = True  # attention functions can be registered, and get what belongs to the batch
    is_causal: bool = True  # a token sees none after it
    is_stateful: bool = False  # a state goes from token to token beside attention


class ModelShape(BaseModel):
    """Everything about an architecture that memory depends on. Sizes in elements, never in bytes."""

    model_config = ConfigDict(frozen=True)

    architecture: str  # class name, as in config.architectures
    model_type: str
    num_parameters: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int | None = None
    hidden_act: str = "silu"
    gated_mlp: bool = True  # SwiGLU-like: gate and up beside each other
    tie_word_embeddings: bool = False
    num_experts: int = 0  # 0 for dense models
    num_experts_per_token: int = 0
    moe_intermediate_size: int = 0
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()  # one per layer, where they differ: full_attention, sliding_attention …
    rotary: bool = True  # positions by rotation of queries and keys; false where learned or added to the scores
    embedding_dropout: float = 0.0  # GPT-2's embd_pdrop and its like: each active dropout keeps a mask while training
    hidden_dropout: float = 0.0  # resid_pdrop, hidden_dropout
    attention_dropout: float = 0.0
    final_logit_softcapping: float | None = None  # Gemma 2
    attn_logit_softcapping: float | None = None
    attention_support: AttentionSupport = AttentionSupport()
    # In a conversation: for each layer that keeps keys and values, of how many tokens at most; None is of all. Without a
    # list, every layer keeps all.
    kept_tokens: tuple[int | None, ...] | None = None
    state_elements: int = 0  # of all layers that keep a state of constant size instead, or beside it
    modules: tuple[ModuleShape, ...] = ()

    @property
    def has_stacked_experts(self) -> bool:
        """Whether experts are stacked in single parameters, which are no linear layers."""
        return any(module.kind == "experts" for module in self.modules)

    def linear_names(self) -> tuple[str, ...]:
        """Last name parts of the linear modules that `all-linear` means, in order of appearance: what an adapter can target."""
        seen: dict[str, None] = {}
        for module in self.all_linear():
            seen.setdefault(module.name.rsplit(".", 1)[-1], None)
        return tuple(seen)

    def all_linear(self) -> tuple[ModuleShape, ...]:
        """Every linear layer but the output head; beside stacked experts, those alone that PEFT does not take for them."""
        excluded = EXPERT_PROJECTIONS if self.has_stacked_experts else frozenset()
        return tuple(
            module
            for module in self.modules
            if module.kind in ("linear", "conv1d")
            and not module.is_output_head
            and module.name.rsplit(".", 1)[-1] not in excluded
        )
