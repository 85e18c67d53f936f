"""The one way to load a tokenizer: complete, and with its template frozen."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engine.data.render.template import FrozenTemplate, freeze_template, rendering_confined
from engine.errors import ModelError, ModelLimitError
from engine.models.folder import check_template_length, check_tokenizer_files
from engine.models.source import ModelSource
from engine.processes.limits import limited

# Reading a vocabulary of the largest size and turning it into a fast tokenizer take less than half of each.
_LOAD_SECONDS = 20.0
_LOAD_MEMORY_BYTES = 5 << 28  # 1.25 GiB


def load_tokenizer(source: ModelSource) -> tuple[Any, FrozenTemplate]:
    """Load a model's tokenizer, ready for rendering, training and chat.

    Returns:
        A fast tokenizer of transformers, with a template, an eos token and a pad token of its own; and what was
        settled about it. Saving it with `save_pretrained` saves the template that training uses.

    Raises:
        ModelError: If there is none, or it does not report which characters its tokens come from.
    """
    tokenizer = open_tokenizer(source)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer of {source.name} does not report which characters its tokens come from.",
            "Choose a model with a tokenizer.json; without it, trained tokens cannot be marked exactly.",
        )
    with rendering_confined(0):
        return tokenizer, freeze_template(tokenizer)


def open_tokenizer(source: ModelSource) -> Any:
    """Load a model's tokenizer as it was published, its files within the limits.

    Raises:
        ModelError: If there is none, it is damaged, or a file of it is too big.
    """
    check_tokenizer_files(Path(source.location), source.name)
    try:
        with limited(_LOAD_SECONDS, _LOAD_MEMORY_BYTES):
            tokenizer = AutoTokenizer.from_pretrained(source.location, local_files_only=True, trust_remote_code=False)
    except MemoryError as error:
        raise ModelLimitError(
            f"The tokenizer of {source.name} needs more memory than it may use.", "Use the original files of the model."
        ) from error
    except Exception as error:  # broken files surface as nearly any exception
        raise ModelError(
            f"The tokenizer of {source.name} cannot be loaded ({type(error).__name__}).",
            "Check that the model is complete and that its files are those of a text model.",
        ) from error
    check_template_length(tokenizer.chat_template, source.name)
    tokenizer.name_or_path = source.name  # a path elsewhere; errors name it, and it is not saved
    return tokenizer
