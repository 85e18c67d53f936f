"""What travels through the bucket: a job's inputs, and what it wrote, which is untrusted: a person can put anything there."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from loratory.engine.accounts.limits import is_lab
from loratory.engine.config.load import config_to_yaml
from loratory.engine.config.run import DatasetConfig, RunConfig
from loratory.engine.data.media.row_images import DIGESTS
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.exchange import store_images
from loratory.engine.errors import DatasetError, RunError
from loratory.engine.files import write_atomically
from loratory.engine.hub import RunBucket
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.prepared import DEMO_MODEL_ID, demo_folder, is_demo_prepared
from loratory.engine.paths import AllowedPaths, LoratoryHome
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.layout import JobResult, whole_lines, write_piece
from loratory.engine.runs.checkpoints import MANIFEST, damage, list_checkpoints, offered_checkpoints
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import RUN_ID, Run
from loratory.engine.runs.store import RunStore

if TYPE_CHECKING:
    from huggingface_hub import BucketFile

# Weights as pickles are refused everywhere; a model's folder may still have them next to its safetensors.
_NOT_SENT = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pyc", ".h5", ".msgpack", ".onnx"})
_INPUT_NAMES = {"model.id": "model", "dataset.source": "data", "adapter.warm_start": "adapter"}  # among the inputs


def collect_inputs(run: Run, home: LoratoryHome) -> dict[str, bytes | Path]:
    """Return what the worker of a run needs, by name below the folder of the inputs.

    Raises:
        StorageError: If the configuration cannot be read.
        RunError: If a file that it names is not there any more, or in a lab is none that its owner may name.
    """
    folder, files = run.folder, dict[str, bytes | Path]()
    person = home.for_person(run.owner) if is_lab(home) else home
    allowed = AllowedPaths(person) if is_lab(home) else None

    numbers = itertools.count()

    def send(field: str, text: str) -> str:
        input_name = _INPUT_NAMES.get(field) or f"mix-{next(numbers)}"
        if RUN_ID.fullmatch(text):  # of the adapter that this one continues
            path = RunStore(home, run.owner).get(text).folder.adapter
        elif Path(text).is_absolute():  # the preflight made those absolute that are paths here
            path = Path(text)
        else:  # a name that means the same everywhere
            return text
        if not path.exists():
            raise RunError(f"{path.name}, which this run needs, no longer exists.", "Restore it, then resume.")
        name = f"{input_name}/{path.name}" if path.is_file() else input_name
        uploads = {name: path} if path.is_file() else dict(_below(path, input_name))
        if allowed is not None:  # again: the preflight was a while ago
            # The files of a model that an admin put there may be links into a cache.
            for file in (path, *(uploads.values() if input_name != "model" else ())):
                allowed.read(file, RunError)
        files.update(uploads)
        if field.startswith("dataset.") and path.is_file():
            files.update(_images_of(folder.read_config().dataset, path, person, input_name))
        return f"{layout.SENT_PREFIX}{name}"

    config = _with_demo_folder(folder.read_config().with_names(send), home, files)
    files["run/config.yaml"] = config_to_yaml(config).encode()
    # In a lab, paths of its person are confined there; the job's home has no people.
    provenance = read_provenance(folder).model_copy(update={"person": ""})
    files["run/provenance.json"] = provenance.model_dump_json().encode()
    files["run/events.jsonl"] = whole_lines(folder.events)
    newest = next(offered_checkpoints(folder.checkpoints), None)
    if newest is not None:
        for name in (*newest.manifest.files, MANIFEST):
            files[f"run/checkpoints/{newest.folder.name}/{name}"] = newest.folder / name
    return files


def _images_of(dataset: DatasetConfig, path: Path, home: LoratoryHome, input_name: str) -> dict[str, bytes | Path]:
    """Return the stored images that the rows of a data file name as files, and which of the names means which."""
    images = {}
    with contextlib.suppress(DatasetError):  # the worker reports what is wrong with the data
        reader = DatasetReader(dataset.model_copy(update={"source": str(path), "mix": {}}), SourceOptions(home=home))
        images = store_images(reader, home, path.parent)
    if not images:
        return {}
    store = MediaStore(home.media)
    paths = (store.path(ref) for digest in images.values() if (ref := store.find(digest)) is not None)
    files: dict[str, bytes | Path] = {f"{layout.MEDIA}/{file.parent.name}/{file.name}": file for file in paths}
    return files | {f"{input_name}/{DIGESTS}": json.dumps(images).encode()}


def _with_demo_folder(config: RunConfig, home: LoratoryHome, files: dict[str, bytes | Path]) -> RunConfig:
    """Send the demo model where it was made here: elsewhere it may come from another place."""
    entry, model = find_in_catalog(config.model.id), config.model
    is_ours = entry is not None and entry.id == DEMO_MODEL_ID and model.revision is None and is_demo_prepared(home)
    if not is_ours:
        return config
    files.update(_below(demo_folder(home), "model"))
    return config.model_copy(update={"model": model.model_copy(update={"id": f"{layout.SENT_PREFIX}model"})})


def _below(folder: Path, folder_name: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not is_hidden and path.suffix not in _NOT_SENT:
            yield f"{folder_name}/{name.as_posix()}", path


_LARGEST_PIECE_BYTES = 16_000_000  # of the event log; the companion sends smaller ones
_UNCOUNTED_BYTES = 1_000_000  # between two measurements of a person's disk space, which reads their folders


class JobDownload:
    """Downloads the files of one attempt as they come.

    Args:
        folder: Of the attempt, in the bucket.
    """

    def __init__(self, run: Run, home: LoratoryHome, folder: str) -> None:
        self._run = run
        self._home = home
        self._folder = folder
        self._fetched_log = ""  # its hash
        self._checkpoints_there: set[str] = set()
        self._uncounted_bytes = 0

    @property
    def has_log(self) -> bool:
        """Whether the companion has sent the worker's log."""
        return bool(self._fetched_log)

    def fetch(self, bucket: RunBucket) -> tuple[bool, JobResult | None]:
        """Download new files; return whether a piece of the event log is missing, and how the worker ended.

        Raises:
            HubUnreachableError: If the Hub does not answer.
            PushError: If it refuses.
            StorageError: If the disk is full, or the person of a lab has no room.
        """
        files = bucket.list(self._folder)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=self._run.folder.path) as folder:
            incoming = Path(folder)
            has_gap = self._fetch_events(bucket, files, incoming)
            there = {name for file in files if (name := layout.checkpoint_of(file)) is not None}
            for name in sorted(there):
                self._fetch_checkpoint(bucket, name, files, incoming)
            for name in self._checkpoints_there - there:  # the worker keeps a few only
                shutil.rmtree(self._run.folder.checkpoints / name, ignore_errors=True)
            self._checkpoints_there = there
            self._fetch_log(bucket, files, incoming)
            result = None
            if layout.END in files and files[layout.END].size <= _LARGEST_PIECE_BYTES:
                with contextlib.suppress(ValidationError):  # not written by our companion: there is no result
                    result = self._fetch_results(bucket, files, incoming)
        return has_gap, result

    def _require_room(self, files: Sequence[BucketFile]) -> None:
        """Limit a person of a lab, who may put anything into the bucket, to their disk space."""
        self._uncounted_bytes += sum(file.size for file in files)
        if self._uncounted_bytes > _UNCOUNTED_BYTES:
            require_disk_space(self._home, self._run.owner, self._uncounted_bytes)
            self._uncounted_bytes = 0

    def _fetch_events(self, bucket: RunBucket, files: dict[str, BucketFile], incoming: Path) -> bool:
        pieces = sorted((offset, name) for name in files if (offset := layout.segment_offset(name)) is not None)
        pieces = [(offset, name) for offset, name in pieces if files[name].size <= _LARGEST_PIECE_BYTES]
        self._require_room([files[name] for _, name in pieces])
        bucket.get([(files[name], incoming / str(offset)) for offset, name in pieces])
        piece_names = []
        for offset, name in pieces:
            if not write_piece(self._run.folder.events, offset, (incoming / str(offset)).read_bytes()):
                break
            piece_names.append(f"{self._folder}/{name}")
        bucket.remove(piece_names)  # the list stays short
        return len(piece_names) < len(pieces)

    def _fetch_checkpoint(self, bucket: RunBucket, name: str, files: dict[str, BucketFile], incoming: Path) -> None:
        """Fetch a checkpoint that is complete there and not here; one that came damaged is fetched again."""
        target = self._run.folder.checkpoints / name
        prefix = f"{layout.CHECKPOINTS}/{name}/"
        parts = [part for part in files if part.startswith(prefix) and layout.checkpoint_of(part) == name]
        if (target / MANIFEST).exists() or f"{prefix}{MANIFEST}" not in parts:
            return
        checkpoint_folder = incoming / layout.CHECKPOINTS / name
        self._require_room([files[part] for part in parts])
        bucket.get([(files[part], checkpoint_folder / part.removeprefix(prefix)) for part in parts])
        (checkpoint,) = list_checkpoints(checkpoint_folder.parent) or (None,)
        names = {part.removeprefix(prefix) for part in parts} - {MANIFEST}
        # A bucket can hold anything: a manifest that lists other files would make this machine read them.
        if checkpoint is not None and names >= set(checkpoint.manifest.files) and not damage(checkpoint):
            target.parent.mkdir(mode=0o700, exist_ok=True)
            checkpoint_folder.rename(target)

    def _fetch_log(self, bucket: RunBucket, files: dict[str, BucketFile], incoming: Path) -> None:
        log = files.get(layout.LOG)
        if log is not None and self._fetched_log != log.xet_hash and log.size <= _LARGEST_PIECE_BYTES:
            bucket.get([(log, incoming / "log")])
            (incoming / "log").replace(self._run.folder.log)
            self._fetched_log = log.xet_hash

    def _fetch_results(self, bucket: RunBucket, files: dict[str, BucketFile], incoming: Path) -> JobResult:
        prefix = f"{layout.RESULTS}/adapter/"
        names = [name for name in files if name.startswith(prefix) and layout.is_plain(name)]
        adapter = incoming / "adapter"
        self._require_room([files[name] for name in names])
        bucket.get([(files[layout.END], incoming / "end")])
        result = JobResult.model_validate_json((incoming / "end").read_bytes())
        bucket.get([(files[name], adapter / name.removeprefix(prefix)) for name in names])
        if names:
            self._name_base(adapter / "adapter_config.json")
            shutil.rmtree(self._run.folder.adapter, ignore_errors=True)
            adapter.rename(self._run.folder.adapter)
        return result

    def _name_base(self, path: Path) -> None:
        """Let an adapter of an uploaded model name its base as an adapter that was trained here does."""
        if not path.exists():
            return
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return
        if not isinstance(facts, dict):
            return
        base = str(facts.get("base_model_name_or_path") or "")
        if Path(base).is_absolute():
            model = self._run.folder.read_config().model.id
            published = None if Path(model).is_absolute() else read_provenance(self._run.folder).model_source
            write_atomically(path, json.dumps({**facts, "base_model_name_or_path": published or model}, indent=2))
