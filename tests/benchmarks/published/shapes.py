"""Build shapes of decoders from a handful of published sizes, without transformers.

The product takes the inventory of the real architecture. A measurement in a table gives sizes, or only a name, and was
often made with an older transformers, in which each expert was a module. `models.json` has the sizes known by name.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from loratory.engine.models.catalog import find_in_catalog, list_catalog
from loratory.engine.models.shape import ModelShape, ModuleKind, ModuleShape


class PublishedSizes(BaseModel):
    """The sizes of a decoder, under transformers' names."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: str = "llama"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int
    tie_word_embeddings: bool = False
    max_position_embeddings: int | None = None
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int | None = None
    embedding_dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0


_SAME_SHAPE = re.compile(r"(-(hf|instruct|chat|it|base|gptq|awq|int4|int8|unsloth|bnb|4bit|8bit))+$")
_WITH_QUERY_BIAS = frozenset({"qwen2"})
_WITH_LAYER_NORM = frozenset({"gpt_bigcode"})


def known_sizes(model_id: str) -> PublishedSizes | None:
    """Sizes of a model that is known by name: from the catalogue, else from a short list."""
    entry = find_in_catalog(model_id) or next(
        (entry for entry in list_catalog() if _bare_name(entry.hub_id) == _bare_name(model_id)), None
    )
    if entry is not None:
        return PublishedSizes.model_validate(dict(entry.config))
    name = model_id.rsplit("/", 1)[-1].casefold()
    return next((sizes for part, sizes in _models_by_name().items() if part in name), None)


@cache
def _models_by_name() -> dict[str, PublishedSizes]:
    entries = json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))
    return {name: PublishedSizes.model_validate(sizes) for name, sizes in entries.items()}


def _bare_name(model_id: str) -> str:
    """Return a model's name without its publisher, and without what changes no shape."""
    name = model_id.rsplit("/", 1)[-1].casefold().removeprefix("meta-")
    return _SAME_SHAPE.sub("", name)


def dropouts_of(model_type: str) -> dict[str, float]:
    """Return the dropouts that a family trains with by default; younger ones have none."""
    names = ("embedding_dropout", "hidden_dropout", "attention_dropout")
    return dict.fromkeys(names, 0.1) if model_type in _WITH_LAYER_NORM else {}


def published_shape(name: str, sizes: PublishedSizes) -> ModelShape:
    """Build the inventory of a decoder from its sizes, each expert a module as before transformers 5; `name` is for messages."""
    modules = tuple(_modules(sizes))
    head_dim = sizes.head_dim or sizes.hidden_size // sizes.num_attention_heads
    return ModelShape(
        architecture=name,
        model_type=sizes.model_type,
        num_parameters=sum(module.parameters for module in modules),
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads or sizes.num_attention_heads,
        head_dim=head_dim,
        intermediate_size=sizes.intermediate_size,
        vocab_size=sizes.vocab_size,
        max_position_embeddings=sizes.max_position_embeddings,
        hidden_act="gelu_pytorch_tanh" if sizes.model_type in _WITH_LAYER_NORM else "silu",
        gated_mlp=sizes.model_type not in _WITH_LAYER_NORM,
        tie_word_embeddings=sizes.tie_word_embeddings,
        num_experts=sizes.num_experts,
        num_experts_per_token=sizes.num_experts_per_tok,
        moe_intermediate_size=sizes.moe_intermediate_size or (sizes.intermediate_size if sizes.num_experts else 0),
        rotary=sizes.model_type not in _WITH_LAYER_NORM,
        embedding_dropout=sizes.embedding_dropout,
        hidden_dropout=sizes.hidden_dropout,
        attention_dropout=sizes.attention_dropout,
        modules=modules,
    )


def _modules(sizes: PublishedSizes) -> Iterator[ModuleShape]:
    hidden, kind = sizes.hidden_size, sizes.model_type
    tied = sizes.tie_word_embeddings
    yield _embedding("model.embed_tokens", sizes.vocab_size, hidden)
    if kind in _WITH_LAYER_NORM:
        yield _embedding("model.wpe", sizes.max_position_embeddings or 1024, hidden)
    for index in range(sizes.num_hidden_layers):
        prefix = f"model.layers.{index}."
        if kind in _WITH_LAYER_NORM:
            yield from _gpt_layer(prefix, sizes)
        else:
            yield from _llama_layer(prefix, sizes)
    yield _norm("model.norm", hidden, kind in _WITH_LAYER_NORM)
    yield ModuleShape(
        name="lm_head",
        kind="linear",
        class_name="Linear",
        parameters=0 if tied else sizes.vocab_size * hidden,
        in_features=hidden,
        out_features=sizes.vocab_size,
        tied_to="model.embed_tokens" if tied else None,
        is_output_head=True,
    )


def _llama_layer(prefix: str, sizes: PublishedSizes) -> Iterator[ModuleShape]:
    hidden, inner, kind = sizes.hidden_size, sizes.intermediate_size, sizes.model_type
    head_dim = sizes.head_dim or hidden // sizes.num_attention_heads
    queries = sizes.num_attention_heads * head_dim
    keys = (sizes.num_key_value_heads or sizes.num_attention_heads) * head_dim
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    bias = kind in _WITH_QUERY_BIAS
    yield _linear(f"{attention}q_proj", hidden, queries, bias=bias)
    yield _linear(f"{attention}k_proj", hidden, keys, bias=bias)
    yield _linear(f"{attention}v_proj", hidden, keys, bias=bias)
    yield _linear(f"{attention}o_proj", queries, hidden)
    if sizes.num_experts:
        yield from _experts(f"{prefix}block_sparse_moe.", sizes)
    else:
        yield _linear(f"{mlp}gate_proj", hidden, inner)
        yield _linear(f"{mlp}up_proj", hidden, inner)
        yield _linear(f"{mlp}down_proj", inner, hidden)
    yield _norm(f"{prefix}input_layernorm", hidden, False)
    yield _norm(f"{prefix}post_attention_layernorm", hidden, False)


def _experts(prefix: str, sizes: PublishedSizes) -> Iterator[ModuleShape]:
    hidden, inner = sizes.hidden_size, sizes.moe_intermediate_size or sizes.intermediate_size
    yield _linear(f"{prefix}gate", hidden, sizes.num_experts)
    for expert in range(sizes.num_experts):
        for name, rows, columns in (("w1", hidden, inner), ("w2", inner, hidden), ("w3", hidden, inner)):
            yield replace(_linear(f"{prefix}experts.{expert}.{name}", rows, columns), kind="experts")


def _gpt_layer(prefix: str, sizes: PublishedSizes) -> Iterator[ModuleShape]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    head_dim = hidden // sizes.num_attention_heads
    keys = (sizes.num_key_value_heads or sizes.num_attention_heads) * head_dim
    yield _linear(f"{prefix}attn.c_attn", hidden, hidden + 2 * keys, bias=True)
    yield _linear(f"{prefix}attn.c_proj", hidden, hidden, bias=True)
    yield _linear(f"{prefix}mlp.c_fc", hidden, inner, bias=True)
    yield _linear(f"{prefix}mlp.c_proj", inner, hidden, bias=True)
    yield _norm(f"{prefix}ln_1", hidden, True)
    yield _norm(f"{prefix}ln_2", hidden, True)


def _linear(name: str, rows: int, columns: int, *, bias: bool = False) -> ModuleShape:
    count = rows * columns + (columns if bias else 0)
    module = _module(name, "linear", rows, columns, "Linear", count)
    return replace(module, has_bias=bias, is_quantizable=True)


def _embedding(name: str, rows: int, width: int) -> ModuleShape:
    return _module(name, "embedding", rows, width, "Embedding", rows * width)


def _norm(name: str, width: int, is_layer_norm: bool) -> ModuleShape:
    count = width * (2 if is_layer_norm else 1)
    class_name = "LayerNorm" if is_layer_norm else "RMSNorm"
    return replace(_module(name, "norm", width, width, class_name, count), has_bias=is_layer_norm)


def _module(
    name: str, kind: ModuleKind, in_features: int, out_features: int, class_name: str, parameters: int
) -> ModuleShape:
    return ModuleShape(
        name=name,
        kind=kind,
        class_name=class_name,
        parameters=parameters,
        in_features=in_features,
        out_features=out_features,
    )
