"""The demo model with eyes: an Idefics3 of its weights and a small random vision tower, assembled on first use.

The tower has learned nothing: trained as `full` weights with its projector, it learns shapes and colours in minutes. Weights
pass as bytes, so neither torch nor transformers is needed.
"""

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import deserialize

from loratory.engine.data.render.template import with_parts
from loratory.engine.models.folder import SINGLE_WEIGHTS, read_config
from loratory.engine.models.prepared import (
    DEMO_VISION_ID,
    ModelProgress,
    OnModelProgress,
    Recipe,
    ignore_progress,
    is_prepared,
    prepare_once,
)
from loratory.engine.paths import LoratoryHome

_RECIPE = Recipe(made_from="SmolLM2-135M-Instruct with a random tower 1", needed_bytes=300_000_000)
_PLACEHOLDER = "<image>"
_TOKENS = (
    *("<fake_token_around_image>", _PLACEHOLDER, "<end_of_utterance>", "<global-img>"),
    *(f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)),
)
_TILE, _PATCH, _SCALE = 64, 8, 2  # pixels; (64 / 8 / 2)² = 16 tokens for each tile
_LAYERS, _WIDTH, _HIDDEN, _HEADS = 4, 192, 768, 3
_STD = 0.02  # of random weights
_ROWS_MULTIPLE = 64  # of the vocabulary


def demo_vision_folder(home: LoratoryHome) -> Path:
    """Return the folder of the demo model with eyes once it is prepared."""
    return home.models / DEMO_VISION_ID


def find_demo_vision(home: LoratoryHome) -> Path | None:
    """Return the folder of the demo model with eyes; None where it is not in this home yet."""
    folder = demo_vision_folder(home)
    return folder if is_prepared(folder, _RECIPE) else None


def prepare_demo_vision(base: Path, home: LoratoryHome, on_progress: OnModelProgress = ignore_progress) -> Path:
    """Return the folder of the demo model with eyes, assembled on first use from the demo model in `base`.

    Raises:
        ModelError: If the demo model is damaged.
        StorageError: If the disk has no space for it.
    """

    def build(target: Path) -> None:
        on_progress(ModelProgress("converting", "Adding a vision tower to the demo model."))
        size = _write_tokenizer(base, target)
        _write_settings(base, target, size)
        _write_weights(base, target, size)

    return prepare_once(demo_vision_folder(home), _RECIPE, build, on_progress)


def _write_tokenizer(base: Path, target: Path) -> int:
    """Write the tokenizer with tokens for images, and a template that takes some; return the size of the vocabulary."""
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    first: int = 1 + max(*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"]))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {"id": first + index, "content": token, "special": True, **flags} for index, token in enumerate(_TOKENS)
    ]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = read_config(base / "tokenizer_config.json", DEMO_VISION_ID)
    template_file = base / "chat_template.jinja"
    template = settings.pop("chat_template", None) or template_file.read_text(encoding="utf-8")
    (target / "chat_template.jinja").write_text(with_parts(template, _PLACEHOLDER), encoding="utf-8")
    _write_json(target / "tokenizer_config.json", {**settings, "processor_class": "Idefics3Processor"})
    return first + len(_TOKENS)


def _write_settings(base: Path, target: Path, vocabulary: int) -> None:
    text = read_config(base / "config.json", DEMO_VISION_ID)
    vision: dict[str, Any] = {
        "model_type": "idefics3_vision",
        "hidden_size": _WIDTH,
        "intermediate_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "image_size": _TILE,
        "patch_size": _PATCH,
    }
    config: dict[str, Any] = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "dtype": "bfloat16",
        "image_token_id": vocabulary - len(_TOKENS) + _TOKENS.index(_PLACEHOLDER),
        "scale_factor": _SCALE,
        "tie_word_embeddings": True,
        "text_config": {**text, "vocab_size": _rows(vocabulary)},
        "vision_config": vision,
        **{name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in text},
    }
    images = {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "max_image_size": {"longest_edge": _TILE},
        "size": {"longest_edge": 2 * _TILE},
    }
    tokens = (_TILE // _PATCH // _SCALE) ** 2
    _write_json(target / "config.json", config)
    _write_json(target / "preprocessor_config.json", images)
    _write_json(target / "processor_config.json", {"processor_class": "Idefics3Processor", "image_seq_len": tokens})
    if (base / "generation_config.json").exists():
        shutil.copyfile(base / "generation_config.json", target / "generation_config.json")


def _write_weights(base: Path, target: Path, vocabulary: int) -> None:
    random = np.random.default_rng(0)
    tensors: dict[str, _Tensor] = {}
    for name, tensor in deserialize((base / SINGLE_WEIGHTS).read_bytes()):  # type: ignore[no-untyped-call]
        if name == "lm_head.weight":  # the embeddings again
            continue
        shape, data = tensor["shape"], bytes(tensor["data"])
        if name == "model.embed_tokens.weight":
            more = random.normal(0, _STD, (_rows(vocabulary) - shape[0], shape[1])) + _mean(data, shape[1])
            shape, data = [_rows(vocabulary), shape[1]], data + _bfloat16(more)
        tensors[name.replace("model.", "model.text_model.", 1)] = _Tensor(shape, data)
    for name, shape in _tower_shapes(tensors["model.text_model.norm.weight"].shape[0]):
        is_norm = "norm" in name and name.endswith("weight")
        values = random.normal(0, _STD, shape) if len(shape) > 1 else np.full(shape, float(is_norm))
        tensors[name] = _Tensor(list(shape), _bfloat16(values))
    _save(tensors, target / SINGLE_WEIGHTS)


class _Tensor(NamedTuple):
    shape: list[int]
    data: bytes  # in bfloat16


def _save(tensors: Mapping[str, _Tensor], path: Path) -> None:
    """Write a safetensors file; what the library writes bytes with differs between its releases."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(tensor.data for tensor in tensors.values())


def _tower_shapes(hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of the tower and its projector into a model that is `hidden` wide."""
    tower, projector = "model.vision_model", "model.connector.modality_projection.proj.weight"
    yield f"{tower}.embeddings.patch_embedding.weight", (_WIDTH, 3, _PATCH, _PATCH)
    yield f"{tower}.embeddings.patch_embedding.bias", (_WIDTH,)
    yield f"{tower}.embeddings.position_embedding.weight", ((_TILE // _PATCH) ** 2, _WIDTH)
    for layer in (f"{tower}.encoder.layers.{index}" for index in range(_LAYERS)):
        linear = {f"self_attn.{name}": (_WIDTH, _WIDTH) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        for name, shape in {**linear, "mlp.fc1": (_HIDDEN, _WIDTH), "mlp.fc2": (_WIDTH, _HIDDEN)}.items():
            yield f"{layer}.{name}.weight", shape
            yield f"{layer}.{name}.bias", shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{layer}.{name}.weight", (_WIDTH,)
            yield f"{layer}.{name}.bias", (_WIDTH,)
    yield f"{tower}.post_layernorm.weight", (_WIDTH,)
    yield f"{tower}.post_layernorm.bias", (_WIDTH,)
    yield projector, (hidden, _WIDTH * _SCALE**2)


def _rows(vocabulary: int) -> int:
    """Return the rows of the embeddings."""
    return -(-vocabulary // _ROWS_MULTIPLE) * _ROWS_MULTIPLE


def _bfloat16(values: np.ndarray) -> bytes:
    """Return numbers as bfloat16, which has the upper half of a float32, rounded."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) >> 16).astype(np.uint16).tobytes()


def _mean(data: bytes, width: int) -> np.ndarray:
    """Return the mean of rows in bfloat16."""
    bits = np.frombuffer(data, np.uint16).astype(np.uint32) << 16
    mean: np.ndarray = bits.view(np.float32).reshape(-1, width).mean(axis=0)
    return mean


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
