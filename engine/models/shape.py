"""What is known about a model: its modules and sizes, its details, and patterns over the names of its modules."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from pydantic import BaseModel

from loratory.engine.models.catalog import CatalogEntry
from loratory.engine.models.families.base import ImagePart

# How single projections of experts were called before transformers stacked them, and the router. PEFT takes these names to
# mean the stacks, whose adapters it multiplies out to the size of all experts at each pass; see docs/design/decisions.md.
# Source: `_MOE_TARGET_MODULE_MAPPING`, peft/utils/transformers_weight_conversion.py.
EXPERT_PROJECTIONS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
ModuleKind = Literal["linear", "conv1d", "embedding", "norm", "router", "experts", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)  # the catalogue has 10,000, of 1.4 KiB each as pydantic models
class ModuleShape:
    """One leaf module that owns parameters; read from the real architecture on the meta device."""

    name: str  # full dotted name, as PEFT sees it
    kind: ModuleKind  # linear and conv1d only for what PEFT adapts as such; a router or experts held as bare parameters not
    class_name: str = ""  # such as Linear, Conv1D, LlamaRMSNorm
    parameters: int  # of its own, tied ones counted at their first owner only
    in_features: int = 0  # of linear-like modules; rows of an embedding; width of a norm
    out_features: int = 0  # of linear-like modules; width of an embedding or a norm
    has_bias: bool = False
    tied_to: str | None = None  # name of the module whose weight it shares
    is_output_head: bool = False
    part: ImagePart | None = None  # of what sees images; None in the language model and its head
    is_quantizable: bool = False  # whether bitsandbytes replaces it; experts held as bare parameters stay as they are
    bare_parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # their shapes; of no known layer

    @property
    def bias_parameters(self) -> int:
        return self.out_features if self.has_bias else 0


class AttentionSupport(BaseModel, frozen=True):
    """What an architecture's class in transformers declares about its attention; the defaults are those of most decoders."""

    has_sdpa: bool = True
    has_flash: bool = True
    passes_arguments: bool = True  # attention functions can be registered, and get what belongs to the batch
    is_causal: bool = True  # a token sees none after it


class ModelShape(BaseModel, frozen=True):
    """Everything about an architecture that memory depends on. Sizes in elements, never in bytes."""

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
    gated_mlp: bool = True  # SwiGLU-like: gate and up side by side
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
    state_elements: int = 0  # of all layers that keep a state of constant size instead, or as well
    modules: tuple[ModuleShape, ...] = ()

    @property
    def takes_images(self) -> bool:
        """Whether it has a part that sees images."""
        return any(module.part is not None for module in self.modules)

    @property
    def has_stacked_experts(self) -> bool:
        """Whether experts are stacked in single parameters, which are not linear layers."""
        return any(module.kind == "experts" for module in self.modules)

    def linear_names(self) -> tuple[str, ...]:
        """Return the last name parts of the modules that `all-linear` means, in order: what an adapter can target."""
        return tuple(dict.fromkeys(module.name.rsplit(".", 1)[-1] for module in self.all_linear()))

    def all_linear(self) -> tuple[ModuleShape, ...]:
        """Return every linear layer of the language model; with stacked experts, without those that PEFT takes for them."""
        excluded = EXPERT_PROJECTIONS if self.has_stacked_experts else frozenset()
        return tuple(
            module
            for module in self.modules
            if module.kind in ("linear", "conv1d")
            and not module.is_output_head
            and module.part is None
            and module.name.rsplit(".", 1)[-1] not in excluded
        )


class ModelDetails(BaseModel, frozen=True):
    """One model, described from its configuration, its tokenizer and its files; no weight is read for it."""

    name: str
    hub_id: str | None
    architecture: str  # class name in transformers
    parameters: int
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int | None  # context in tokens
    dtype: str  # in which its weights are stored, by the configuration; "" where it is not given
    vocab_size: int  # rows of the embedding, which may be more than the tokenizer has
    num_experts: int = 0
    linear_names: tuple[str, ...]  # last name parts that `target_modules` can name
    license: str | None = None
    size_bytes: int | None = None  # of the weights on this machine; None where they are not here yet
    tokenizer_missing: str | None = None  # why the three below are not known, in two sentences
    tokenizer_tokens: int | None = None
    special_tokens: dict[str, str] = {}  # bos, eos, pad, unk; those that it has
    chat_template: str | None = None  # as published; None where it has none

    @classmethod
    def from_shape(cls, model_id: str, shape: ModelShape, entry: CatalogEntry | None) -> Self:
        """Return what is known without its tokenizer and files."""
        facts = shape.model_dump(include=set(cls.model_fields) & set(ModelShape.model_fields))
        published = {"name": entry.title, "hub_id": entry.hub_id, "license": entry.license} if entry else {}
        return cls.model_validate(
            {"name": model_id, "hub_id": None, "dtype": "", "parameters": shape.num_parameters}
            | {"linear_names": shape.linear_names()} | facts | published
        )  # fmt: skip


PLAIN_NAME = re.compile(r"[\w.-]+")  # matches itself alone, except that a dot matches any character
_MAX_CHARACTERS = 2_000


class PatternError(Exception):
    """A pattern is not a regular expression, is too long, or takes too long; the message follows the pattern."""


class PatternMatcher:
    """Matches any number of patterns, all together within a limit: each may be harmless, and their number not."""

    def __init__(self, seconds: float = 1.0) -> None:
        self._ends = time.process_time() + seconds  # of computing, by the clock of `regex`

    def matching(self, pattern: str, names: Iterable[str], *, whole: bool = True) -> list[str]:
        """Return the names of modules that match a regular expression, as a `whole` or at their beginning.

        Raises:
            PatternError: If the pattern is unusable.
        """
        import regex  # not before there is a pattern: the page starts without it

        if len(pattern) > _MAX_CHARACTERS:
            raise PatternError(f"has {len(pattern):,} characters; {_MAX_CHARACTERS:,} are the most")
        try:
            compiled = regex.compile(pattern)
            match = compiled.fullmatch if whole else compiled.match
            return [name for name in names if match(name, timeout=max(self._ends - time.process_time(), 0.001))]
        except regex.error as error:
            raise PatternError(f"is not a regular expression ({error})") from error
        except TimeoutError as error:
            raise PatternError("takes too long to match") from error
        except (RecursionError, MemoryError, OverflowError) as error:
            raise PatternError("is too deeply nested") from error
