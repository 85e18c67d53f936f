"""llama.cpp's own library, which quantizes GGUF files and runs them: found without being loaded, and run in its own process."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from engine.config.results import GgufType
from engine.errors import ModelError
from engine.export.gguf.precisions import PRECISIONS
from engine.processes.json_lines import JsonLinesProcess
from engine.processes.messages import JsonObject


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
        file_type: As llama.cpp numbers it.
        log_file: Takes what llama.cpp prints.
        on_wait: Gets the bytes written so far, several times a second; may raise to end it.

    Raises:
        ModelError: If llama.cpp cannot quantize it.
        WorkerError: If its process died.
    """
    params = {"source": str(source), "target": str(target), "file_type": file_type}
    ask_llama_cpp("quantize", params, log_file, lambda progress: on_wait(progress["bytes"]))


def ask_llama_cpp(
    question: str, params: JsonObject, log_file: Path, on_progress: Callable[[JsonObject], None]
) -> JsonObject:
    """Ask llama.cpp one question, in a process of its own that ends with the answer.

    Args:
        question: A handler of `engine.export.worker.llama`.
        log_file: Takes what llama.cpp prints.
        on_progress: May raise to end it.

    Raises:
        ModelError: If llama.cpp cannot load or quantize the file.
        WorkerError: If its process died.
    """
    process = JsonLinesProcess("engine.export.worker.llama", log_file=log_file, restarts=False)
    try:
        return process.call(question, params, on_progress=on_progress)
    finally:
        process.close(timeout_seconds=0.5)
