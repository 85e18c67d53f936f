"""An export's folder: staged and renamed once it is complete, and checked for private content before a push."""

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from loratory.engine.config.results import PushKind
from loratory.engine.errors import ModelError, PushError, StorageError, explain_os_errors
from loratory.engine.export.contract import ExportedFile
from loratory.engine.export.kinds import KINDS
from loratory.engine.files import fsync_folder
from loratory.engine.models.folder import is_named_template, named_templates

_MAX_SAFETENSORS_HEADER_BYTES = 100_000_000  # the format's own limit
# Files of a tokenizer; others are not copied.
TOKENIZER_FILES = tuple(
    """
    added_tokens.json chat_template.jinja merges.txt sentencepiece.bpe.model special_tokens_map.json spiece.model
    tekken.json tokenizer.json tokenizer.model tokenizer_config.json vocab.json vocab.txt
    """.split()
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_OF_THIS_MACHINE = frozenset({"is_local", "local_files_only", "name_or_path", "_name_or_path", "_commit_hash"})


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `folder` at the end of the block, or deleted on an error.

    Staging folders of killed processes are deleted too.

    Raises:
        StorageError: If `folder` is not empty or cannot be written.
    """
    prefix = f".{folder.name}.making-"
    staging = folder.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with explain_os_errors(f"{folder.name} cannot be written", "Free some space, or choose another folder."):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise StorageError(f"{folder.name} exists already and is not empty.", "Choose a new folder.")
            folder.parent.mkdir(parents=True, exist_ok=True)
            for remainder in folder.parent.glob(f"{glob.escape(prefix)}*"):
                maker = remainder.name.removeprefix(prefix).partition("-")[0]
                if maker.isdecimal() and not psutil.pid_exists(int(maker)):
                    shutil.rmtree(remainder, ignore_errors=True)
            staging.mkdir()
            yield staging
            if folder.is_dir():
                folder.rmdir()
            staging.rename(folder)
            fsync_folder(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer with its templates, without fields that refer to this machine."""
    for name in (*TOKENIZER_FILES, *named_templates(source)):
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
    if (target / "tokenizer_config.json").is_file():
        rewrite_json(target / "tokenizer_config.json")


def rewrite_json(path: Path, **changes: object) -> None:
    """Change fields of a JSON file, and drop those that refer to this machine.

    Raises:
        ModelError: If it is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        # A tokenizer's files have fixed names; fields such as merges_file have paths of some machine.
        entries = {
            key: value for key, value in values.items() if key not in _OF_THIS_MACHINE and not key.endswith("_file")
        }
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path.name} cannot be read.", "Copy the run's folder again.") from error
    path.write_text(json.dumps({**entries, **changes}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def list_files(folder: Path) -> tuple[ExportedFile, ...]:
    """Return all files in a folder, sorted by name."""
    return tuple(
        ExportedFile(name=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


_ALWAYS = frozenset({"README.md", "generation_config.json", *TOKENIZER_FILES, *PROCESSOR_FILES})

# A vocabulary has pieces of any text, including paths; only paths of this machine are searched for there.
_VOCABULARIES = frozenset({"merges.txt", "tekken.json", "tokenizer.json", "vocab.json", "vocab.txt"})
_TEXT_SUFFIXES = frozenset({".json", ".md", ".txt", ".jinja"})
_PATH_VALUE = re.compile(r"(/[^/\s]+){2,}/?|~[^/\s]*/\S+|[A-Za-z]:[\\/]\S.*|\\\\\S+\\\S.*")  # a whole JSON value
_PATH_IN_PROSE = re.compile(r"(?<![\w.:/])(/home/|/Users/|/root/|[A-Za-z]:\\)[^\s`)\"']+")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")


def is_intended(name: str, kind: PushKind) -> bool:
    """Return whether a file of this name is part of an export of this kind; others are not pushed."""
    if name == "config.json":
        return name in KINDS[kind].needed_files
    return name in _ALWAYS or is_named_template(name) or KINDS[kind].holds_weights(name)


def intended_files(folder: Path, kind: PushKind) -> tuple[tuple[ExportedFile, ...], tuple[str, ...]]:
    """Return the files to push and the names of those that are not part of an export; links are not followed.

    Raises:
        PushError: If a required file is missing.
    """
    files, left_out = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_file() and not path.is_symlink() and is_intended(name, kind):
            files.append(ExportedFile(name=name, size_bytes=path.stat().st_size))
        else:
            left_out.append(name)
    names = {file.name for file in files}
    missing = sorted(KINDS[kind].needed_files - names)
    if not missing and not any(name.endswith(".safetensors") for name in names):
        missing = ["model.safetensors"]
    if missing:
        raise PushError(f"The export lacks {missing[0]}, so nothing was sent.", "Export it again, then push.")
    return tuple(files), tuple(left_out)


def refuse_private_content(
    folder: Path, names: Sequence[str], private_folders: Sequence[Path], token: str | None
) -> None:
    """Search the files to push for paths of this machine and of `private_folders`, for access tokens and for `token`.

    Raises:
        PushError: With the name of the file, without its content.
    """
    own = tuple(f"{folder_path}" for folder_path in private_folders if len(folder_path.parts) > 2)
    for name in names:
        path = folder / name
        is_weights = path.suffix == ".safetensors"
        content = _safetensors_header(path) if is_weights else path.read_bytes()
        reason = _private_in_bytes(content, own, token)
        if reason is None and is_weights:
            reason = _private_in_json(content, "safetensors header")
        elif reason is None and path.suffix in _TEXT_SUFFIXES and path.name not in _VOCABULARIES:
            reason = _private_in_text(path, content)
        if reason is not None:
            raise PushError(
                f"{name} contains {reason}, which must not leave this machine; nothing was sent.",
                "Find it in an exported folder, remove it from the run's name, notes or template, and push again.",
            )


def _private_in_text(path: Path, content: bytes) -> str | None:
    text = content.decode("utf-8", errors="replace")
    if _TOKEN.search(text):
        return "an access token"
    if path.suffix == ".json":
        return _private_in_json(text, "JSON")
    return "a path" if _PATH_IN_PROSE.search(text) else None


def _private_in_json(content: str | bytes, form: str) -> str | None:
    try:
        return "a path" if any(_PATH_VALUE.fullmatch(value) for value in _strings(json.loads(content))) else None
    except ValueError:
        return f"an invalid {form}"


def _private_in_bytes(content: bytes, own: Sequence[str], token: str | None) -> str | None:
    if token and token.encode() in content:
        return "an access token"
    for path in own:
        # JSON writes a backslash twice, and letters beyond ASCII as escapes.
        if path.encode() in content or json.dumps(path)[1:-1].encode() in content:
            return "a path"
    return None


def _safetensors_header(path: Path) -> bytes:
    """Return the header of a safetensors file; empty if the file has none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(length) if length < _MAX_SAFETENSORS_HEADER_BYTES else b""


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings of a JSON tree except keys, which are names of settings, tokens and tensors."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
