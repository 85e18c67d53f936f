"""Make a set from a file, a sample or a dataset on the Hub; compare versions, and write one to a file."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
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
from loratory.engine.data.records import Record
from loratory.engine.data.source import SetRows, SourceOptions, path_of
from loratory.engine.data.workshop.sets import FACTS, LOG, NAME, SOURCE, DataSet, SetFacts, find_set, set_names
from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.files import fsync_tree, sha256_of, write_atomically
from loratory.engine.hub import DATASET
from loratory.engine.paths import REFUSAL, LoratoryHome
from loratory.engine.quantities import size

_MOST_BYTES = 4 * 10**9  # of a copy, as of an upload


def add_set(
    home: LoratoryHome, name: str, config: DatasetConfig, *, author: str, require_space: Callable[[int], None]
) -> DataSet:
    """Make a set, reading all its rows once; `require_space` gets the bytes to copy, and refuses what is too much."""
    if home.is_guest:
        raise DatasetError(*REFUSAL)
    if NAME.fullmatch(name) is None or name in set_names(home):
        what = f"{shown_name(name, 40)!r} cannot be the name of a new set."
        raise DatasetError(what, "Use up to 61 small letters, digits, dots, - and _ that no other set is called.")
    draft = home.datasets / f".new-{name}-{os.getpid()}"
    try:
        home.datasets.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)
        (draft / SOURCE).mkdir()
        source, size_bytes = config.source.strip(), None
        if is_on_hub(source):
            with DATASET.explain_errors(require_hub_id(source), config.revision):
                info = HfApi().dataset_info(source, revision=config.revision, timeout=20.0)
            config = config.model_copy(update={"revision": info.sha})
            fingerprint = f"{source} {config.subset} {config.split} {info.sha}"
        else:
            copy = _copy(source, draft / SOURCE, home, require_space)
            source, size_bytes, fingerprint = str(copy), copy.stat().st_size, sha256_of(copy)
        reader = DatasetReader(config.model_copy(update={"source": source}), SourceOptions())
        facts = SetFacts(
            dataset=config, fingerprint=fingerprint, rows=sum(record is not None for record in reader.records()),
            copied_bytes=size_bytes, author=author, created=datetime.now(UTC),
        )  # fmt: skip
        values = facts.model_dump(mode="json") | {"dataset": config.model_dump(exclude_defaults=True)}
        write_atomically(draft / FACTS, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        write_atomically(draft / LOG, b"")
        fsync_tree(draft)
        draft.rename(home.datasets / name)
    except OSError as error:
        what = f"The set {name} cannot be made ({error.strerror})."
        raise StorageError(what, "Free some space, or check the permissions of the Loratory home.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return find_set(home, name)


def _copy(source: str, folder: Path, home: LoratoryHome, require_space: Callable[[int], None]) -> Path:
    path = path_of(source, SourceOptions(home=home).access) if not source.startswith(SET_PREFIX) else folder
    if path.is_dir():
        raise DatasetError(
            f"{shown_name(source)} is not a file.", "Name a file, or export a version of the set to one."
        )
    # Only the endings tell the kind of a file; the rest of its name may be anything.
    endings = [end for end in PurePath(path.name.lower()).suffixes[-2:] if end in (*DATA_ENDINGS, ".gz")]
    with open_regular(path) as file, (folder / f"rows{''.join(endings)}").open("xb") as target:
        size_bytes, most = os.fstat(file.fileno()).st_size, min(shutil.disk_usage(folder).free, _MOST_BYTES)
        if size_bytes > most:
            what = f"{shown_name(path.name)} has {size(size_bytes)}; {size(most)} can be copied."
            raise StorageError(what, "Free some space, or divide the file.")
        require_space(size_bytes)
        shutil.copyfileobj(file, target)
        return Path(target.name)


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
    sides = [{**(record.value or {}), "(held out)": str(record.is_held_out)} for record in (old, new)]
    names = [name for name in sides[0] | sides[1] if sides[0].get(name) != sides[1].get(name)]
    diffs = {name: unified_diff(_lines(sides[0].get(name)), _lines(sides[1].get(name)), lineterm="") for name in names}
    return {name: "\n".join(list(lines)[2:]) for name, lines in diffs.items()}


def _lines(value: Any) -> list[str]:
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str)).split(
        "\n"
    )


def export_version(rows: SetRows, target: Path) -> None:
    """Write a version as a new file of JSON Lines, which trains as the version does; what cannot be read is left out."""
    if target.exists():
        raise DatasetError(f"{target.name} exists already.", "Name another file.")
    records = (record for record in rows.records() if record is not None and record.value is not None)
    texts = (json.dumps(record.value, ensure_ascii=False, default=str) for record in records)
    write_atomically(target, (f"{text}\n".encode(errors="backslashreplace") for text in texts))  # halves of characters
