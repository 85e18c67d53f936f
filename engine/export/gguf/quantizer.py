"""llama.cpp's own library, which quantizes GGUF files and runs them: found without being loaded, and run in its own process."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from engine.config.results import GgufType
from engine.errors import ModelError
from engine.export.gguf.precisions import PRECISIONS
from engine.processes.json_lines import JsonLinesProcess


def has_llama_cpp() -> bool:
    """Return whether llama-cpp-python is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def require_quantizer(gguf_type: GgufType) -> None:
    """Check that a precision can be written here.

    Raises:
        ModelError: If it takes llama.cpp's library, which is missing.
    """
    precision = PRECISIONS.get(gguf_type)  # none for auto
    if precision is not None and precision.file_type is not None and not has_llama_cpp():
        raise ModelError(
            f"Writing {gguf_type} takes llama.cpp's library, which is not installed.",
            "Install it with `pip install 'loratory[llama-cpp]'`, or choose q8_0, bf16 or f16.",
        )


def quantize(source: Path, target: Path, file_type: int, log_file: Path, on_wait: Callable[[int], None]) -> None:
    """Quantize a GGUF file of 16 bits.

    Args:
        source: The file.
        target: What is written.
        file_type: As llama.cpp numbers it.
        log_file: Takes what llama.cpp prints.
        on_wait: Gets the bytes written so far, several times a second; may raise to end it.

    Raises:
        ModelError: If llama.cpp cannot quantize it.
        WorkerError: If its process died.
    """
    process = JsonLinesProcess("engine.export.worker.llama", log_file=log_file, restarts=False)
    params = {"source": str(source), "target": str(target), "file_type": file_type}
    try:
        process.call("quantize", params, on_progress=lambda told: on_wait(told["bytes"]))
    finally:
        process.close(timeout_seconds=0.5)
