"""The precisions of a GGUF file: how each is written and verified, and the predicted size of the file.

Sizes follow llama.cpp's `llama_tensor_get_type_impl` (src/llama-quant.cpp): a tensor's type depends on its role, its layer
and the length of its rows.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loratory.engine.config.results import GgufType
from loratory.engine.models.folder import TensorRecord, read_config, read_safetensors_header, weight_files


@dataclass(frozen=True, kw_only=True)
class GgufPrecision:
    """One precision of the weights."""

    weights: str  # type of most matrices
    finer: str  # type of the output head, a tied embedding, and attention values and down projections of some layers
    file_type: int | None = None  # number in llama.cpp's library; None if the converter writes it
    # Share of greedy answers that must be equal; None if quantization may change them and perplexity decides.
    needed_share: float | None
    roundings: float = 1.0  # allowed multiple of the effect of rounding; 32 weights of q8_0 share a scale
    tolerance: float = 1e-2  # relative difference of a mean of squares


# llama.cpp rounds activations like weights, which changes near ties: a few with the eleven bits of f16, more with the
# eight bits of bf16 and q8_0.
PRECISIONS: Mapping[GgufType, GgufPrecision] = {
    "q4_k_m": GgufPrecision(weights="q4_k", finer="q6_k", file_type=15, needed_share=None),
    "q5_k_m": GgufPrecision(weights="q5_k", finer="q6_k", file_type=17, needed_share=None),
    "q6_k": GgufPrecision(weights="q6_k", finer="q6_k", file_type=18, needed_share=None),
    "q8_0": GgufPrecision(weights="q8_0", finer="q8_0", needed_share=0.5, roundings=2.0),
    "bf16": GgufPrecision(weights="bf16", finer="bf16", needed_share=0.5),
    "f16": GgufPrecision(weights="f16", finer="f16", needed_share=0.9, tolerance=1e-3),
}

# Limit relative to the unquantized result.
PERPLEXITY_LIMIT = 1.1


class Block(NamedTuple):
    """Weights of a row that are stored together, and their bytes."""

    weights: int
    size_bytes: int


# Source: ggml-common.h; a test compares them with the gguf package.
BLOCKS: Mapping[str, Block] = {
    "q4_k": Block(256, 144),
    "q5_k": Block(256, 176),
    "q6_k": Block(256, 210),
    "q5_0": Block(32, 22),
    "q5_1": Block(32, 24),
    "q8_0": Block(32, 34),
    "f16": Block(1, 2),
    "bf16": Block(1, 2),
    "f32": Block(1, 4),
}
_INSTEAD = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}  # for rows that are not whole blocks

_LAYER = re.compile(r"\.(\d+)\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings)\.weight$")
_VALUES = re.compile(r"\.(v_proj|qkv_proj|in_proj_qkv|query_key_value|c_attn|Wqkv|kv_b_proj)\.weight$")
_DOWN = re.compile(r"(\.(down_proj|fc2|w2|dense_4h_to_h)|mlp\.c_proj)(\.weight)?$")
_KEPT = re.compile(r"norm|\.gate\.weight$|router|conv1d|\.(A_log|dt_bias|bias)$")
_LEFT_OUT = re.compile(r"(^|\.)(visual|vision_\w+|multi_modal_projector|audio_\w+|mtp)\.|rotary_emb|\.inv_freq$")
_FLOATS = {"F64", "F32", "F16", "BF16"}
# Bytes per token of a vocabulary, measured for 49,152 to 151,936 tokens; bytes of a tensor's name and offsets.
_TOKEN_BYTES, _TENSOR_BYTES = 36, 80


def predict_sizes(folder: Path, name: str) -> Mapping[str, int]:
    """Return the bytes of a merged model in each precision; empty if the base's files are quantized.

    The predictions were within 1% of llama.cpp's files. Raises as `read_stored` does.
    """
    records, shape = read_stored(folder, name)
    return {precision: _predict(records, shape, PRECISIONS[precision]) for precision in PRECISIONS if records}


def read_stored(folder: Path, name: str) -> tuple[list[TensorRecord], "_Shape"]:
    """Return the tensors of a merged model by the headers of its base's files; none if these are quantized.

    Raises:
        ModelError: If the base cannot be read.
    """
    config = read_config(folder / "config.json", name)
    records = [
        record
        for file in weight_files(folder, name)
        for record in read_safetensors_header(file, name)
        if not _LEFT_OUT.search(record.name)
    ]
    text = config.get("text_config")
    shape = _Shape.from_config({**config, **text} if isinstance(text, dict) else config, records)
    if any(record.dtype not in _FLOATS for record in records):
        return [], shape
    return [record for record in records if not (shape.tied and _HEAD.search(record.name))], shape  # stored once


def is_matrix_of_layer(record: TensorRecord) -> bool:
    """Return whether a tensor is a matrix of a layer, and neither embedding, output head nor router."""
    others = (_HEAD, _EMBEDDING, _KEPT)
    return len(record.shape) == 2 and not any(pattern.search(record.name) for pattern in others)


class _Shape(NamedTuple):
    layers: int
    tied: bool
    values: tuple[str, ...]  # names of the attention values, by layer

    @classmethod
    def from_config(cls, config: Mapping[str, object], records: Sequence[TensorRecord]) -> "_Shape":
        names = [record.name for record in records]
        has_head = any(map(_HEAD.search, names))
        return cls(
            layers=1 + max(map(_layer_of, names), default=0),
            tied=bool(config.get("tie_word_embeddings", not has_head)) or not has_head,
            values=tuple(sorted(filter(_VALUES.search, names), key=_layer_of)),
        )


def _layer_of(name: str) -> int:
    match = _LAYER.search(name)
    return int(match[1]) if match is not None else 0


def _predict(records: Sequence[TensorRecord], shape: _Shape, precision: GgufPrecision) -> int:
    size = 0
    for record in records:
        block = BLOCKS[_actual_type(_target_type(record, shape, precision), record.shape[-1] if record.shape else 1)]
        size += math.prod(record.shape) // block.weights * block.size_bytes + _TENSOR_BYTES
        if _EMBEDDING.search(record.name) and record.shape:
            size += record.shape[0] * _TOKEN_BYTES
    return size


def _target_type(record: TensorRecord, shape: _Shape, precision: GgufPrecision) -> str:
    name = record.name
    if len(record.shape) < 2 or _KEPT.search(name):
        return "f32"
    if _HEAD.search(name) or (shape.tied and _EMBEDDING.search(name)):
        return precision.finer
    if _VALUES.search(name):
        return precision.finer if _gets_more(shape.values.index(name), len(shape.values)) else precision.weights
    if _DOWN.search(name) and _gets_more(_layer_of(name), shape.layers):
        return precision.finer
    return precision.weights


def _gets_more(layer: int, layers: int) -> bool:
    """Return whether a layer is in the first or last eighth, or every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _actual_type(target: str, row: int) -> str:
    """Return the type that llama.cpp uses, which differs if rows are not a multiple of the target's block."""
    if row % BLOCKS[target].weights == 0:
        return target
    instead = _INSTEAD.get(target, "f16")
    return instead if row % BLOCKS[instead].weights == 0 else "f16"
