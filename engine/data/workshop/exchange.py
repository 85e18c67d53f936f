"""Make a set from a file, a sample or a dataset on the Hub; compare versions, and write one to a file."""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from difflib import unified_diff
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

import yaml
from huggingface_hub import HfApi

from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.files import DATA_ENDINGS
from loratory.engine.data.files.access import open_regular, shown_name
from loratory.engine.data.hub import is_on_hub, require_hub_id
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.records import Record, json_line
from loratory.engine.data.source import SetRows, SourceOptions, path_of
from loratory.engine.data.workshop.sets import FACTS, LOG, NAME, SOURCE, DataSet, SetFacts, find_set, set_names
from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.files import fsync_tree, write_atomically
from loratory.engine.hub import DATASET
from loratory.engine.paths import REFUSAL, LoratoryHome
from loratory.engine.quantities import size

_MOST_BYTES = 4 * 10**9  # of a copy, as of an upload
_PIECE_BYTES = 1 << 20
_TIMEOUT_SECONDS = 20.0
_FREE_SPACE = "Free some space, or check the permissions of the folder."

RequireSpace = Callable[[int], None]  # raises an error where a person may not store so many bytes


def add_set(
    home: LoratoryHome, name: str, config: DatasetConfig, *, author: str, require_space: RequireSpace
) -> DataSet:
    """Make a set, reading all its rows once, which also shows that a format fits them.

    Raises:
        DatasetError: If the name cannot be used or is taken, or the source cannot be read, or is not a single file.
        StorageError: If there is no space for it.
    """
    if home.is_guest:
        raise DatasetError(*REFUSAL)
    if NAME.fullmatch(name) is None or name in set_names(home):
        what = (
            f"{shown_name(name, 40)!r} {'is a set already' if NAME.fullmatch(name) else 'cannot be the name of a set'}."
        )
        raise DatasetError(what, "Use up to 61 small letters, digits, dots, - and _ that no other set is called.")
    unfinished = home.datasets / f".adding-{name}-{os.getpid()}"
    try:
        for folder in (home.datasets, unfinished, unfinished / SOURCE):
            folder.mkdir(mode=0o700, parents=True, exist_ok=folder == home.datasets)
        copied_bytes, read_from = None, config.source.strip()
        if is_on_hub(read_from):
            config, fingerprint = _at_commit(config)
        else:
            copy, copied_bytes, fingerprint = _copy(read_from, unfinished / SOURCE, home, require_space)
            read_from = str(copy)
        reader = DatasetReader(config.model_copy(update={"source": read_from}), SourceOptions())
        rows = sum(record is not None for record in reader.records())
        facts = SetFacts(
            dataset=config, fingerprint=fingerprint, rows=rows, copied_bytes=copied_bytes, author=author,
            created=time.time(),
        )  # fmt: skip
        values = facts.model_dump() | {"dataset": config.model_dump(exclude_defaults=True)}
        write_atomically(unfinished / FACTS, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        write_atomically(unfinished / LOG, b"")
        fsync_tree(unfinished)
        unfinished.rename(home.datasets / name)
    except OSError as error:
        raise StorageError(f"The set {name} cannot be made ({error.strerror}).", _FREE_SPACE) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return find_set(home, name)


def _copy(source: str, folder: Path, home: LoratoryHome, require_space: RequireSpace) -> tuple[Path, int, str]:
    """Copy a file; returns the copy, its bytes and its sha256."""
    path = path_of(source, SourceOptions(home=home).access) if not source.startswith(SET_PREFIX) else folder
    if path.is_dir():
        raise DatasetError(
            f"{shown_name(source)} is not a file.", "Name a file; write a version of a set to one first."
        )
    # Only the endings tell the kind of a file; the rest of its name may be anything.
    endings = [end for end in PurePath(path.name.lower()).suffixes[-2:] if end in (*DATA_ENDINGS, ".gz")]
    copy, digest = folder / f"rows{''.join(endings)}", hashlib.sha256()
    with open_regular(path) as file, copy.open("xb") as target:
        bytes_, most = os.fstat(file.fileno()).st_size, min(shutil.disk_usage(folder).free, _MOST_BYTES)
        if bytes_ > most:
            what = f"{shown_name(path.name)} has {size(bytes_)}; {size(most)} can be copied."
            raise StorageError(what, "Free some space, or divide the file.")
        require_space(bytes_)
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            target.write(piece)
    return copy, bytes_, digest.hexdigest()


def _at_commit(config: DatasetConfig) -> tuple[DatasetConfig, str]:
    """Pin a dataset on the Hub to its present commit; returns also a hash of what names its rows."""
    hub_id = require_hub_id(config.source.strip())
    with DATASET.explain_errors(hub_id, config.revision):
        info = HfApi().dataset_info(hub_id, revision=config.revision, timeout=_TIMEOUT_SECONDS)
    names = f"{hub_id} {config.subset} {config.split} {info.sha}"
    return config.model_copy(update={"revision": info.sha}), hashlib.sha256(names.encode()).hexdigest()


class RowChange(NamedTuple):
    """What happened to one row."""

    row: int  # from 1
    change: Literal["added", "gone", "changed"]
    fields: dict[str, str]  # by column, what differs as a unified diff; of a row that came or went, its beginning


def compare_versions(before: SetRows, after: SetRows) -> Iterator[RowChange]:
    """Yield the rows that differ between two versions of one set, in order, in one pass over its source."""
    for record in filter(None, before.untouched.records()):
        old, new = before.editor.apply(record), after.editor.apply(record)
        if old is not None and new is not None:
            if fields := _differences(old, new):
                yield RowChange(record.row + 1, "changed", fields)
        elif left := old or new:
            yield RowChange(record.row + 1, "gone" if old else "added", {"": left.sample()})


def _differences(old: Record, new: Record) -> dict[str, str]:
    before, after = dict(old.value or {}), dict(new.value or {})
    if old.is_held_out != new.is_held_out:
        before["(held out)"], after["(held out)"] = str(old.is_held_out), str(new.is_held_out)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    texts = {name: (_lines(before.get(name)), _lines(after.get(name))) for name in names}
    return {name: "\n".join(list(unified_diff(*sides, n=2, lineterm=""))[2:]) for name, sides in texts.items()}


def _lines(value: Any) -> list[str]:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return text.split("\n")


def export_version(rows: SetRows, target: Path) -> int:
    """Write a version as JSON Lines, which trains as the version does; returns how many rows it has.

    Rows that cannot be read are left out, as they are in training.

    Raises:
        DatasetError: If the file exists, or the source cannot be read.
        StorageError: If it cannot be written.
    """
    if target.exists():
        raise DatasetError(f"{target.name} exists already.", "Name another file.")
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    count = 0
    try:
        with unfinished.open("xb") as file:
            for record in filter(None, rows.records()):
                if record.value is not None:
                    count += 1
                    file.write(json_line(record.value) + b"\n")
        unfinished.rename(target)
    except OSError as error:
        raise StorageError(f"{target.name} cannot be written ({error.strerror}).", _FREE_SPACE) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return count
