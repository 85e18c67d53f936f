"""A config.json into transformers' own configuration, with nonsense refused, and its sizes under one set of names."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from loratory.engine.errors import ModelError
from loratory.engine.models.batching import AttentionFacts
from loratory.engine.models.catalog import is_causal_lm, is_known_model_type
from loratory.engine.models.shape import AttentionSupport, ModelShape
from loratory.engine.processes.limits import TimeLimitError

_LARGEST = {  # far beyond anything published, and small enough to be built without weights in seconds
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "num_hidden_layers": 2_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "vocab_size": 100_000_000,
    "num_experts": 100_000,
}

_NAMES = {  # under which architectures keep a size, transformers' usual name first
    size: tuple(names.split())
    for size, names in {
        "hidden_size": "hidden_size n_embd d_model dim n_embed emb_dim",
        "intermediate_size": "intermediate_size ffn_dim n_inner ffn_hidden_size d_ff decoder_ffn_dim d_inner",
        "num_hidden_layers": "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers",
        "num_attention_heads": "num_attention_heads n_head n_heads num_heads decoder_attention_heads",
        "num_key_value_heads": "num_key_value_heads num_kv_heads n_head_kv",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_position_embeddings n_positions max_seq_len seq_length n_ctx",
        "num_experts": "num_experts num_local_experts n_routed_experts moe_num_experts",
        "num_experts_per_token": "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts moe_top_k",
        "moe_intermediate_size": "moe_intermediate_size expert_ffn_hidden_size",
        "hidden_act": "hidden_act hidden_activation activation_function activation mlp_hidden_act",
        "embedding_dropout": "embd_pdrop embedding_dropout embed_dropout embd_dropout emb_pdrop",
        "hidden_dropout": "resid_pdrop hidden_dropout resid_dropout dropout hidden_dropout_prob",
        "attention_dropout": "attention_dropout attn_pdrop attention_probs_dropout_prob",
    }.items()
}

_FIX = "Use the config.json of the original model."
_SAID_BY = {"num_hidden_layers": ("layers_block_type", "hybrid_override_pattern")}  # Nemotron-H spells its layers out


def build_config(values: Mapping[str, JsonValue]) -> PreTrainedConfig:
    """Turn a config.json into transformers' configuration.

    Raises:
        ModelError: If it names no causal language model that transformers knows, leaves out the sizes without which any
            answer would be about another model, or gives absurd ones.
    """
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError("The configuration names no model_type.", _FIX)
    if not is_known_model_type(model_type):
        raise ModelError(
            f"The installed transformers does not know the model type {model_type[:80]!r}.",
            "Update transformers, or choose a model of a known architecture.",
        )
    if not is_causal_lm(model_type):
        raise ModelError(
            f"{model_type!r} is not a causal language model.",
            "Choose a model that generates text, such as Qwen/Qwen3-0.6B.",
        )
    _require_given_sizes(values)
    try:
        config = _read_as_transformers_does(values)
    except (TimeLimitError, MemoryError):
        raise
    except Exception as error:
        # Configuration classes report invalid values by errors of any type.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"The configuration of this {model_type} model is wrong ({reason}).", _FIX) from error
    _refuse_absurd_sizes(config)
    return config


def read_shape(config: PreTrainedConfig) -> ModelShape:
    """Return the sizes of the text model inside `config`, under one set of names; what only its modules show is missing."""
    text = config.get_text_config(decoder=True)
    heads = _size(text, "num_attention_heads") or 1
    hidden_size = _size(text, "hidden_size")
    # GPT-2 and its like leave it out for four times the hidden size.
    intermediate_size = _size(text, "intermediate_size")
    experts = _size(text, "num_experts")
    activation = _first(text, _NAMES["hidden_act"])
    options: dict[str, Any] = {"hidden_act": activation} if isinstance(activation, str) else {}
    return ModelShape(
        architecture="",
        model_type=str(config.model_type),
        num_parameters=0,
        hidden_size=hidden_size,
        num_hidden_layers=_size(text, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(text, heads),
        head_dim=_largest(_value(text, "head_dim")) or hidden_size // heads,
        intermediate_size=intermediate_size or 4 * hidden_size,
        vocab_size=_size(text, "vocab_size"),
        max_position_embeddings=_size(text, "max_position_embeddings") or None,
        num_experts=experts,
        num_experts_per_token=_size(text, "num_experts_per_token") if experts else 0,
        moe_intermediate_size=(_size(text, "moe_intermediate_size") or intermediate_size) if experts else 0,
        sliding_window=_largest(_value(text, "sliding_window")) or None,
        layer_types=tuple(str(kind) for kind in _value(text, "layer_types") or ()),
        embedding_dropout=_share(text, "embedding_dropout"),
        hidden_dropout=_share(text, "hidden_dropout"),
        attention_dropout=_share(text, "attention_dropout"),
        final_logit_softcapping=_number(_value(text, "final_logit_softcapping")),
        attn_logit_softcapping=_number(_value(text, "attn_logit_softcapping")),
        **options,
    )


def read_attention(model: PreTrainedModel) -> AttentionFacts:
    """Return what decides how the rows of a causal language model are batched; its weights are not looked at."""
    text = model.config.get_text_config(decoder=True)
    shape = read_shape(model.config)
    support = AttentionSupport(
        has_sdpa=bool(model._supports_sdpa),
        has_flash=bool(model._supports_flash_attn),
        passes_arguments=bool(model._supports_attention_backend),
        is_causal=bool(getattr(text, "is_decoder", True)),  # encoders can be decoders, and have a flag for it
    )
    return replace(AttentionFacts.of_shape(shape, support), model_type=str(text.model_type))


def _read_as_transformers_does(values: Mapping[str, JsonValue]) -> PreTrainedConfig:
    """Read values through a file, as models are loaded, with legacy names and infinities."""
    own = {key: value for key, value in values.items() if key not in ("auto_map", "quantization_config")}
    with tempfile.TemporaryDirectory(prefix="loratory-config-") as folder:
        Path(folder, "config.json").write_text(json.dumps(own), encoding="utf-8")
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return config


def _require_given_sizes(values: Mapping[str, JsonValue]) -> None:
    """Require the sizes that transformers would otherwise fill in from some well-known model."""
    text = values.get("text_config")
    settings = {**values, **text} if isinstance(text, dict) else values
    for size in ("hidden_size", "num_hidden_layers"):
        if not any(settings.get(name) is not None for name in (*_NAMES[size], *_SAID_BY.get(size, ()))):
            raise ModelError(f"The configuration has no {size}.", "Use the complete config.json of the model.")


def _refuse_absurd_sizes(config: PreTrainedConfig) -> None:
    text = config.get_text_config(decoder=True)
    for size, largest in _LARGEST.items():
        value = _first(text, _NAMES[size])
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is None or isinstance(number, str):
                continue
            if isinstance(number, bool) or number != int(number) or not 0 <= number <= largest:
                raise ModelError(
                    f"The configuration gives {size} as {number}; it must be a whole number up to {largest:,}.",
                    _FIX,
                )
    for size in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if _size(text, size) < 1:
            raise ModelError(f"The configuration gives no positive {size}.", _FIX)


def _key_value_heads(text: PreTrainedConfig, heads: int) -> int:
    # Falcon and StarCoder have a flag for it; new Falcons also a number.
    if _value(text, "multi_query") and not _value(text, "new_decoder_architecture"):
        return 1
    return _size(text, "num_key_value_heads") or heads


def _first(config: PreTrainedConfig, names: Iterable[str]) -> Any:
    return next((value for name in names if (value := _value(config, name)) is not None), None)


def _value(config: PreTrainedConfig, name: str) -> Any:
    """Return one field of a configuration; of each layer, where layers differ."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return [getattr(layer, name, None) for layer in config.per_layer_config]


def _size(config: PreTrainedConfig, size: str) -> int:
    return _largest(_first(config, _NAMES[size]))


def _largest(value: object) -> int:
    """Return the number itself, the largest where it differs by layer, 0 where there is none."""
    if isinstance(value, list | tuple):
        return max((_largest(entry) for entry in value), default=0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _share(config: PreTrainedConfig, name: str) -> float:
    return _number(_first(config, _NAMES[name])) or 0.0


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
