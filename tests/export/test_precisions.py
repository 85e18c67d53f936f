"""The sizes of GGUF files are predicted by llama.cpp's own rules."""

import json
from pathlib import Path

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import save_file

from loratory.engine.errors import ModelError
from loratory.engine.export.gguf.llama_cpp import require_quantizer
from loratory.engine.export.gguf.precisions import BLOCKS, _gets_more, predict_sizes

HIDDEN, INNER, VOCABULARY, LAYERS = 512, 1024, 1000, 8


def write_base(folder: Path, hidden: int = HIDDEN, *, tied: bool = True, dtype: torch.dtype = torch.bfloat16) -> Path:
    tensors = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        tensors["lm_head.weight"] = (VOCABULARY, hidden)
    for layer in range(LAYERS):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.v_proj": (256, hidden),
            "mlp.up_proj": (INNER, hidden),
            "mlp.down_proj": (hidden, INNER),
        }.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = shape
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = (hidden,)
    folder.mkdir(parents=True)
    save_file({name: torch.zeros(shape, dtype=dtype) for name, shape in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "num_hidden_layers": LAYERS, "tie_word_embeddings": tied})
    )
    return folder


def without_overhead(size: int, tensors: int) -> int:
    return size - tensors * 80 - VOCABULARY * 36


def test_blocks_are_those_of_the_gguf_package():
    assert {name: GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]] for name in BLOCKS} == dict(BLOCKS)


def test_a_mixture_gives_more_bits_to_values_and_down_projections_of_some_layers(tmp_path):
    base = write_base(tmp_path / "base")
    more = sum(_gets_more(layer, LAYERS) for layer in range(LAYERS))

    size = without_overhead(predict_sizes(base, "base")["q4_k_m"], 2 + 5 * LAYERS)

    q4, q6 = 144 / 256, 210 / 256
    mixed = 256 * HIDDEN + HIDDEN * INNER
    plain = HIDDEN * HIDDEN + INNER * HIDDEN
    expected = VOCABULARY * HIDDEN * q6 + LAYERS * plain * q4 + mixed * (more * q6 + (LAYERS - more) * q4)
    assert more == 4  # the first, the last, and every third between
    assert size == expected + 4 * HIDDEN * (LAYERS + 1)


def test_an_embedding_with_a_head_of_its_own_gets_the_fewer_bits(tmp_path):
    tied = predict_sizes(write_base(tmp_path / "tied"), "tied")
    untied = predict_sizes(write_base(tmp_path / "untied", tied=False), "untied")

    assert untied["f16"] - tied["f16"] == 2 * VOCABULARY * HIDDEN + 80
    assert untied["q4_k_m"] - tied["q4_k_m"] == 144 / 256 * VOCABULARY * HIDDEN + 80


def test_rows_that_are_not_whole_blocks_take_the_room_of_a_type_with_smaller_ones(tmp_path):
    sizes = predict_sizes(write_base(tmp_path / "base", hidden=576, tied=False), "base")
    even = predict_sizes(write_base(tmp_path / "even", hidden=512, tied=False), "even")

    assert sizes["q4_k_m"] / sizes["q8_0"] > even["q4_k_m"] / even["q8_0"]
    odd = predict_sizes(write_base(tmp_path / "odd", hidden=40), "odd")
    assert odd["q8_0"] > 0.8 * odd["f16"]


def test_nothing_is_predicted_for_a_base_that_is_quantized(tmp_path):
    assert predict_sizes(write_base(tmp_path / "base", dtype=torch.uint8), "base") == {}


def test_quantizing_without_llama_cpp_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr("loratory.engine.export.gguf.llama_cpp.has_llama_cpp", lambda: False)

    for name in ("auto", "f16", "bf16", "q8_0"):
        require_quantizer(name)
    with pytest.raises(ModelError, match=r"q4_k_m needs llama.cpp's library.*pip install 'loratory\[llama-cpp\]'"):
        require_quantizer("q4_k_m")
