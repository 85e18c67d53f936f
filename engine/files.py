"""Files that are never half-written, and paths that never leave their folder."""

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from loratory.engine.errors import StorageError, explain_os_errors

Model = TypeVar("Model", bound=BaseModel)
FileStamp = tuple[int, int, int]  # inode, bytes, and when it was changed in nanoseconds


def size_and_time(path: Path | str) -> tuple[int, int]:
    """Return the bytes of a file and when it was changed, in nanoseconds; zeros where it cannot be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - for plain strings too, which take a third of the time of paths
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def stamp_of(path: Path) -> FileStamp | None:
    """Return inode, size and time of a plain file; None for links, folders and what is not there."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def sha256_of(path: Path) -> str:
    """Return the hash of a file of any size, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` survive a power cut."""
    # Some network filesystems refuse fsync on a folder; the rename itself is still atomic there.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make all that `folder` holds survive a power cut, before it gets its name."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            fsync_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes | str | Iterable[bytes], *, makes_folder: bool = False) -> None:
    """Replace `path` atomically: a reader sees the old or the new content, even after a power cut.

    Args:
        makes_folder: Create its folder where it is missing; off where that may have been deleted and must not come back.

    Raises:
        StorageError: If the disk is full or the folder cannot be written; the old content is then still there.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        if makes_folder:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        what = f"{path.name} cannot be written ({error.strerror})."
        raise StorageError(what, "Free some space, or check the folder's permissions.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_model(path: Path, kind: type[Model]) -> Model | None:
    """Return the pydantic model whose JSON is in a file; None where it is missing, unreadable or of another form."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def append_model(path: Path, value: BaseModel, what: str, fix: str) -> None:
    """Add a line of JSON to a file, durably: one short write, so it never mixes with lines of others or one cut off before.

    Args:
        path: The file; it is created with its folder.
        what: The fact of the error, to which the reason is added.
        fix: What people can do about it.

    Raises:
        StorageError: If it cannot be written.
    """
    with explain_os_errors(f"{what}", fix):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("a+b", buffering=0) as lines:
            is_torn = lines.tell() > 0 and lines.seek(-1, os.SEEK_END) >= 0 and lines.read() != b"\n"
            lines.write(b"\n" * is_torn + value.model_dump_json().encode() + b"\n")
            os.fsync(lines.fileno())


def read_models(path: Path, kind: type[Model]) -> tuple[Model, ...]:
    """Return what `append_model` added, oldest first; a damaged line is left out."""
    return tuple(stream_models(path, kind))


def stream_models(path: Path, kind: type[Model]) -> Iterator[Model]:
    """Yield what `read_models` returns, with one line at a time in memory."""
    with contextlib.suppress(OSError), path.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValidationError):
                yield kind.model_validate_json(line)


def resolve_inside(folder: Path, relative: str) -> Path:
    """Resolve `relative` below `folder`, following symlinks, and refuse what ends up outside.

    Raises:
        StorageError: If the path leaves the folder, is absolute, or holds a NUL byte.
    """
    root = folder.resolve()
    if "\0" not in relative and not Path(relative).is_absolute():
        path = (root / relative).resolve()
        if path.is_relative_to(root):
            return path
    raise StorageError("That path is outside its allowed folder.", "Choose one of the files that are offered.")
