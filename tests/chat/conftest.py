"""A tiny model that has something to say."""

import pytest

from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """Wide random weights and an output head of its own: greedy answers wander instead of repeating the last token.

    The token that ends an answer has a logit of zero, which some other token always exceeds: no answer ends by itself.
    """
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("lively") / "tiny-llama"
    make_tiny_model(folder, tie_word_embeddings=False, initializer_range=0.4)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][AutoTokenizer.from_pretrained(folder).eos_token_id] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
