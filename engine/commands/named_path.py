"""A path on the command line: what a person typed, as one that this system can look at."""

from pathlib import Path

from engine.errors import StorageError

_SHOWN_CHARACTERS = 60


def named_path(text: str | Path) -> Path:
    """The path that a person named, so that asking what is there cannot fail any more; it need not exist.

    Raises:
        StorageError: If nothing could be there: the name is too long, ~ names nobody, or a folder on the way is closed.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError as error:  # of expanduser
        person = Path(text).parts[0]
        raise _refusal(text, f"{_short(person)} is the home of nobody here") from error
    except OSError as error:
        raise _refusal(text, error.strerror or type(error).__name__) from error
    except ValueError as error:  # a NUL byte, or half of a character
        raise _refusal(text, "it holds characters that no path has") from error
    return path


def _refusal(text: str | Path, reason: str) -> StorageError:
    return StorageError(f"The path {_short(str(text))} cannot be used ({reason}).", "Check its name and permissions.")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
