"""A tiny model that has something to say."""

import pytest

from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """Wide random weights and an output head of its own: greedy answers wander instead of repeating the last token."""
    folder = tmp_path_factory.mktemp("lively") / "tiny-llama"
    return make_tiny_model(folder, tie_word_embeddings=False, initializer_range=0.4)
