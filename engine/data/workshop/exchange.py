"""Make a set from a file, a sample or a dataset on the Hub; compare versions, and write one to a file."""

import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.files import DATA_ENDINGS
from loratory.engine.data.files.access import open_regular
from loratory.engine.data.formats.base import IMAGES
from loratory.engine.data.formats.images import image_column, is_image_part
from loratory.engine.data.hub import is_on_hub, require_hub_id
from loratory.engine.data.media.row_images import DIGESTS, RowImages
from loratory.engine.data.passes.reader import DETECTION_ROWS, DatasetReader, printable_names
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.source import SetRows, SourceOptions, path_of
from loratory.engine.data.workshop import sets
from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.files import fsync_tree, sha256_of, write_atomically
from loratory.engine.hub import DATASET
from loratory.engine.paths import REFUSAL, LoratoryHome

_KEPT_SECONDS = 24 * 3600.0  # what is half-made or half-deleted


def add_set(
    home: LoratoryHome, name: str, config: DatasetConfig, *, author: str, require_space: Callable[[int], None]
) -> sets.DataSet:
    """Make a set, reading all its rows once; `require_space` gets the bytes to copy, and refuses what is too much."""
    if home.is_guest:
        raise DatasetError(*REFUSAL)
    sets.require_new_name(home, name)
    draft = home.datasets / f".new-{name}-{os.getpid()}"
    try:
        home.datasets.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in home.datasets.glob(".*"):  # of processes that were killed
            if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        draft.mkdir(mode=0o700)
        source, size_bytes, original = config.source.strip(), None, None
        if is_on_hub(source):
            from huggingface_hub import HfApi  # takes long

            with DATASET.explain_errors(require_hub_id(source), config.revision):
                info = HfApi().dataset_info(source, revision=config.revision, timeout=20.0)
            config = config.model_copy(update={"revision": info.sha})
            fingerprint = f"{source} {config.subset} {config.split} {info.sha}"
        else:
            original = path_of(source, SourceOptions(home=home).access)
            copy = _copy(original, draft / sets.SOURCE, require_space)
            source, size_bytes, fingerprint = str(copy), copy.stat().st_size, sha256_of(copy)
        reader = DatasetReader(config.model_copy(update={"source": source, "mix": {}}), SourceOptions())
        rows, columns = 0, dict.fromkeys(reader.columns)
        for rows, record in enumerate(filter(None, reader.records()), 1):  # noqa: B007 - their number
            columns |= dict.fromkeys(record.value or ()) if len(columns) <= sets.MAX_COLUMNS else {}
        images = store_images(reader, home, original and original.parent)
        facts = sets.SetFacts(
            dataset=config, fingerprint=fingerprint, rows=rows, copied_bytes=size_bytes, author=author,
            columns=printable_names(columns) if len(columns) <= sets.MAX_COLUMNS else (), created=datetime.now(UTC),
        )  # fmt: skip
        write_atomically(draft / sets.FACTS, facts.model_dump_json(indent=1, exclude_defaults=True))
        write_atomically(draft / sets.LOG, b"")
        if images:
            write_atomically(draft / DIGESTS, json.dumps(images))
        fsync_tree(draft)
        sets.move_to_name(home, draft, name)
    except OSError as error:
        what = f"The set {name} cannot be made ({error.strerror})."
        raise StorageError(what, "Free some space, or check the permissions of the Loratory home.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sets.find_set(home, name)


def store_images(reader: DatasetReader, home: LoratoryHome, folder: Path | None) -> dict[str, str]:
    """Store the images of all rows, where the first ones have some; return the digests of those in files."""
    images, rows = reader.images, reader.rows()
    images.home, images.access, images.folder_of = home, SourceOptions(home=home).access, lambda _: folder
    deque(islice(rows, DETECTION_ROWS), maxlen=0)
    if images.count:
        deque(rows, maxlen=0)
    return images.digests


def set_from(
    home: LoratoryHome, config: DatasetConfig, *, author: str, require_space: Callable[[int], None]
) -> sets.DataSet:
    """Make a set of what a draft or a run reads, with a name of its own; raises as `add_set` does."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", PurePath(config.source.rpartition(":")[2]).name.split(".")[0].lower())
    stem, names = stem.strip("-._")[:50] or "rows", {*sets.set_names(home), *sets.former_names(home)}
    name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(names) + 3))) if n not in names)
    chosen = config.model_dump(exclude={"train_on", "eval_fraction", "max_samples", "mix"})
    return add_set(home, name, DatasetConfig(**chosen), author=author, require_space=require_space)


def _copy(path: Path, folder: Path, require_space: Callable[[int], None]) -> Path:
    folder.mkdir()
    # Only the endings tell the kind of a file; the rest of its name may be anything.
    endings = [end for end in PurePath(path.name.lower()).suffixes[-2:] if end in (*DATA_ENDINGS, ".gz")]
    with open_regular(path) as file, (folder / f"rows{''.join(endings)}").open("xb") as target:
        require_space(os.fstat(file.fileno()).st_size)
        shutil.copyfileobj(file, target)
        return Path(target.name)


def compare_versions(before: SetRows, after: SetRows) -> Iterator[dict[str, Any]]:
    """Yield number, before and after of the rows that differ between two versions of one set: None, or the columns that differ."""
    for source in filter(None, before.untouched.records()):
        records = [rows.editor.apply(source) for rows in (before, after)]
        old, new = ({**(r.value or {}), "(held out)": r.is_held_out} if r is not None else None for r in records)
        if old is not None and new is not None:
            # In lists, a value that is not a number equals itself.
            names = [name for name in old | new if [old.get(name, ...)] != [new.get(name, ...)]]
            old, new = ({name: values[name] for name in names if name in values} for values in (old, new))
        if old != new:
            yield {"row": source.row + 1, "before": old, "after": new}


def export_version(rows: SetRows, target: Path, home: LoratoryHome) -> None:
    """Write a version as a new file of JSON Lines, which trains as the version does; what cannot be read is left out.

    Images are written as files into a folder next to it, which the rows then name; `data:` URLs stay.
    """
    if target.exists():
        raise DatasetError(f"{target.name} exists already.", "Name another file.")
    images = _ImageFiles(rows, home, target.with_name(f"{target.stem}-images"))
    records = (record for record in rows.records() if record is not None and record.value is not None)
    values = (images.with_names(record.value) for record in records if record.value is not None)
    texts = (json.dumps(value, ensure_ascii=False, default=str) for value in values)
    write_atomically(target, (f"{text}\n".encode(errors="backslashreplace") for text in texts))  # halves of characters
    images.write_digests()


class _ImageFiles:
    """The images of a version as files in a folder, which is made for the first one."""

    def __init__(self, rows: SetRows, home: LoratoryHome, folder: Path) -> None:
        self._images = RowImages(home, SourceOptions(home=home).access)
        self._images.folder_of = rows.folder_of
        self._folder = folder
        first = [record.value for record in islice(filter(None, rows.records()), DETECTION_ROWS) if record.value]
        column = rows.read_as["column_map"].get(IMAGES.role)
        self._column = column or image_column({name: name for row in first for name in row}, first)
        self._digests: dict[str, str] = {}  # of what the images were made from, by their names in the rows

    def with_names(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with the names of files in place of its images; `data:` URLs stay."""
        self._images.begin(0)
        return {name: self._with_file_names(value, is_image=name == self._column) for name, value in row.items()}

    def write_digests(self) -> None:
        """Write the digests of the images' sources: where they are stored, the file trains as the version does."""
        if self._digests:
            path = self._folder.with_name(DIGESTS)
            known = json.loads(path.read_bytes()) if path.is_file() else {}  # of another export
            write_atomically(path, json.dumps(known | self._digests))

    def _with_file_names(self, value: Any, *, is_image: bool) -> Any:
        if isinstance(value, list | tuple):
            return [self._with_file_names(each, is_image=is_image) for each in value]
        if is_image and isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
            return self._file_of(value)
        if isinstance(value, Mapping):
            inside = is_image or is_image_part(value)
            return {
                name: self._with_file_names(each, is_image=inside and name not in ("type", "text"))
                for name, each in value.items()
            }
        is_named = isinstance(value, str) and not value.startswith("data:")
        return self._file_of(value) if is_image and (is_named or isinstance(value, bytes)) else value

    def _file_of(self, image: Any) -> Any:
        """Return the name of the file of an image; what it is where it cannot be read."""
        try:
            ref = self._images.load(image)
        except RowProblemError:
            return image
        source = self._images.store.path(ref)
        name = f"{self._folder.name}/{ref.digest}{source.suffix}"
        if name not in self._digests:
            self._folder.mkdir(exist_ok=True)
            shutil.copyfile(source, self._folder.parent / name)
            self._digests[name] = ref.digest
        return name
