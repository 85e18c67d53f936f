"""What a job needs, collected on this machine: the run's files, and the files that its settings name."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from engine.accounts.limits import is_lab
from engine.config.load import config_to_yaml
from engine.config.run import RunConfig
from engine.errors import RunError
from engine.executors.huggingface_jobs import layout
from engine.models.catalog import find_in_catalog
from engine.models.prepared import DEMO_MODEL_ID, demo_folder, is_demo_prepared
from engine.paths import AllowedPaths, LoratoryHome
from engine.runs.checkpoints import MANIFEST, offered_checkpoints
from engine.runs.provenance import read_provenance
from engine.runs.run import Run
from engine.runs.store import RUN_ID, RunStore

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
    allowed = AllowedPaths(home.of(run.owner)) if is_lab(home) else None

    numbers = itertools.count()

    def send(field: str, text: str) -> str:
        input_name = _INPUT_NAMES.get(field) or f"mix-{next(numbers)}"
        path = _path_of(text, run, home)
        if path is None:
            return text
        if not path.exists():
            raise RunError(f"{path.name}, which this run needs, no longer exists.", "Restore it, then resume.")
        uploads: dict[str, Path] = (
            {f"{input_name}/{path.name}": path} if path.is_file() else dict(_below(path, input_name))
        )
        if allowed is not None:  # again: the preflight was a while ago
            # The files of a model that an admin put there may be links into a cache.
            for one in (path, *(uploads.values() if input_name != "model" else ())):
                allowed.read(one, RunError)
        files.update(uploads)
        return (
            f"{layout.SENT_PREFIX}{input_name}/{path.name}" if path.is_file() else f"{layout.SENT_PREFIX}{input_name}"
        )

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


def whole_lines(events: Path) -> bytes:
    """Return the event log up to its last complete line; empty where there is none."""
    try:
        data = events.read_bytes()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def _path_of(text: str, run: Run, home: LoratoryHome) -> Path | None:
    """Return the file or folder that a setting names; None for names that mean the same everywhere."""
    if RUN_ID.fullmatch(text):  # of the adapter that this one continues
        return RunStore(home, run.owner).get(text).folder.adapter
    path = Path(text)
    return path if path.is_absolute() else None  # the preflight made those absolute that are paths here


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
