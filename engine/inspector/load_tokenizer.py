"""Loading a tokenizer the one way that everybody does: complete, and with its template frozen."""

from typing import Any

from transformers import AutoTokenizer

from engine.data.template import FrozenTemplate, freeze_template
from engine.errors import ModelError
from engine.models.source import ModelSource


def load_tokenizer(source: ModelSource) -> tuple[Any, FrozenTemplate]:
    """Load a model's tokenizer, ready for rendering, training and chat.

    Returns:
        A fast tokenizer of transformers, with a template, an eos token and a pad token of its own; and what was
        settled about it. Saving it with `save_pretrained` saves the template that training uses.

    Raises:
        ModelError: If there is none, or it cannot say which characters its tokens come from.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # broken files surface as nearly any exception
        raise ModelError(
            f"The tokenizer of {source.name} cannot be loaded ({type(error).__name__}).",
            "Check that the model is complete and that its files are those of a text model.",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {source.name} does not tell which characters its tokens come from.",
            "Choose a model with a tokenizer.json; without it, what is learned could not be marked exactly.",
        )
    return tokenizer, freeze_template(tokenizer)
