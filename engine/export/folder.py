"""An export's folder: made aside and renamed when it is whole, holding only files that were meant to be in it."""

import contextlib
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from engine.errors import ModelError, StorageError
from engine.export.contract import ExportedFile
from engine.files import fsync_folder
from engine.models.folder import named_templates

# What a tokenizer may consist of; nothing else of a folder is taken along.
TOKENIZER_FILES = tuple(
    """
    added_tokens.json chat_template.jinja merges.txt sentencepiece.bpe.model special_tokens_map.json spiece.model
    tekken.json tokenizer.json tokenizer.model tokenizer_config.json vocab.json vocab.txt
    """.split()
)
_OF_THIS_MACHINE = frozenset({"is_local", "local_files_only", "name_or_path", "_name_or_path", "_commit_hash"})


@contextlib.contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `folder` when the block ends well, and is gone when it does not.

    What a killed process left of an earlier attempt is removed as well.

    Raises:
        StorageError: If `folder` holds something already, or cannot be written.
    """
    prefix = f".{folder.name}.making-"
    aside = folder.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StorageError(f"{folder.name} exists already and is not empty.", "Choose a new folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        for remainder in folder.parent.glob(f"{glob.escape(prefix)}*"):
            maker = remainder.name.removeprefix(prefix).partition("-")[0]
            if maker.isdecimal() and not psutil.pid_exists(int(maker)):
                shutil.rmtree(remainder, ignore_errors=True)
        aside.mkdir()
        yield aside
        if folder.is_dir():
            folder.rmdir()
        aside.rename(folder)
        fsync_folder(folder.parent)
    except OSError as error:
        raise StorageError(
            f"{folder.name} cannot be written ({error.strerror}).", "Free some space, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer with its templates, and without what only means something on this machine."""
    for name in (*TOKENIZER_FILES, *named_templates(source)):
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)
    if (target / "tokenizer_config.json").is_file():
        rewrite_json(target / "tokenizer_config.json")


def rewrite_json(path: Path, **changes: object) -> None:
    """Change fields of a JSON file, and drop those that reveal this machine.

    Raises:
        ModelError: If it is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        # A tokenizer's files have fixed names; what names others (merges_file …) leads to a place on some machine.
        entries = {
            key: value for key, value in values.items() if key not in _OF_THIS_MACHINE and not key.endswith("_file")
        }
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path.name} cannot be read.", "Copy the run's folder again.") from error
    path.write_text(json.dumps({**entries, **changes}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def list_files(folder: Path) -> tuple[ExportedFile, ...]:
    """Return every file below a folder, by name."""
    return tuple(
        ExportedFile(name=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
