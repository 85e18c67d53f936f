"""What a job needs, collected on this machine: Loratory as a wheel, the run's files, and the files that its settings name."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from engine.config.load import config_to_yaml
from engine.config.run import RunConfig
from engine.errors import RunError
from engine.executors.huggingface_jobs import layout
from engine.models.catalog import find_in_catalog
from engine.models.demo import DEMO_MODEL_ID, demo_folder, is_demo_prepared
from engine.paths import LoratoryHome
from engine.runs.checkpoints import MANIFEST, offered_checkpoints
from engine.runs.provenance import read_provenance
from engine.runs.run import Run
from engine.runs.store import RUN_ID, RunStore

_PACKAGES = ("engine", "presets", "ui")
_ROOT = Path(__file__).parents[3]  # of the packages: the project's folder, or site-packages
# Weights as pickles are refused everywhere; a model's folder may still have them beside its safetensors.
_NOT_SENT = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pyc", ".h5", ".msgpack", ".onnx"})
_ZIP_TIME = (2020, 1, 1, 0, 0, 0)  # the same content gives the same wheel


def build_wheel() -> tuple[str, bytes]:
    """Return name in the bucket and content of a wheel of this very Loratory.

    A hash of the content is in the name, so one wheel in the bucket serves all jobs of one version.

    Source: packaging.python.org/specifications/binary-distribution-format.
    """
    installed = metadata.distribution("loratory")
    about = f"loratory-{installed.version}.dist-info"
    files = {name: path.read_bytes() for name, path in _sources()}
    files[f"{about}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: loratory\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},sha256={_wheel_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data, zipfile.ZIP_DEFLATED)
    number = hashlib.sha256(record.encode()).hexdigest()[:12]
    return f"wheels/{number}/loratory-{installed.version}-py3-none-any.whl", wheel.getvalue()


def _wheel_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _sources() -> Iterator[tuple[str, Path]]:
    yield "app.py", _ROOT / "app.py"
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in _NOT_SENT:
                yield path.relative_to(_ROOT).as_posix(), path


def collect_inputs(run: Run, home: LoratoryHome) -> dict[str, bytes | Path]:
    """Return what the worker of a run needs, by name below the folder of the inputs.

    Raises:
        StorageError: If the configuration cannot be read.
        RunError: If a file that it names is not there any more.
    """
    folder, files = run.folder, dict[str, bytes | Path]()

    def send(text: str, called: str) -> str:
        path = _path_of(text, run, home)
        if path is None:
            return text
        if not path.exists():
            raise RunError(f"{path.name}, which this run needs, is not there any more.", "Bring it back, then resume.")
        sent = {f"{called}/{path.name}": path} if path.is_file() else dict(_below(path, called))
        files.update(sent)
        return f"{layout.SENT_PREFIX}{called}/{path.name}" if path.is_file() else f"{layout.SENT_PREFIX}{called}"

    config = _with_demo_folder(layout.with_paths(folder.read_config(), send), home, files)
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


def _below(folder: Path, called: str) -> Iterator[tuple[str, bytes | Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not is_hidden and path.suffix not in _NOT_SENT:
            yield f"{called}/{name.as_posix()}", path
