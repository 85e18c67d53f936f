"""The files of a model that is complete in form and holds next to nothing."""

import json
import struct
from collections.abc import Mapping

LLAMA_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
}


def safetensors_bytes(header: object = None, data: bytes = b"\0" * 8) -> bytes:
    """Return a safetensors file with one tensor of two float32, or with any header."""
    if header is None:
        header = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def model_files() -> Mapping[str, bytes]:
    """Names and contents as a repository holds them."""
    return {
        "config.json": json.dumps(LLAMA_CONFIG).encode(),
        "generation_config.json": b"{}",
        "model.safetensors": safetensors_bytes(),
        "tokenizer.json": b'{"model": {"type": "BPE"}}',
        "tokenizer_config.json": b"{}",
    }
