"""Compressed models for vLLM in the format compressed-tensors: the schemes, their sizes, and the program that writes them.

llm-compressor needs an older transformers than Loratory, so it runs in an environment of its own.
"""

import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loratory.engine.config.results import Compression
from loratory.engine.errors import ModelError
from loratory.engine.export.gguf.llama_cpp import last_line, run_program
from loratory.engine.export.gguf.precisions import is_matrix_of_layer, read_stored
from loratory.engine.export.gguf.precisions import predict_sizes as predict_gguf_sizes
from loratory.engine.hardware.device import Device
from loratory.engine.models.folder import TensorRecord
from loratory.engine.paths import typed_path

ENVIRONMENT_VARIABLE = "LORATORY_LLM_COMPRESSOR"

_SCRIPT = Path(__file__).with_name("worker") / "llm_compressor.py"
GROUP_SIZES = (128, 64, 32)  # weights with one scale, as vLLM's kernels read them
_TENSOR_BYTES = 120  # name and place of a tensor in the file
_BLACKWELL = (
    "is computed by GPUs of NVIDIA's Blackwell generation alone, so no other could compare the file with the run"
)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to compress the matrices of the layers; embedding and output head stay as they are."""

    preset: str  # name in compressed-tensors
    modifier: str  # of llm-compressor, that chooses the values
    bits: int = 8
    reads_rows: bool = False  # of the run, to round what matters to them least
    needs_gpu: bool = False
    runs_in: str = ""
    refusal: str = ""  # why it is not written, as the predicate of a sentence


# Sources: compressed-tensors' PRESET_SCHEMES; vLLM's documentation, "Supported Hardware" of quantization.
SCHEMES: Mapping[str, Scheme] = {
    "fp8": Scheme(
        preset="FP8_DYNAMIC",
        modifier="QuantizationModifier",
        runs_in="vLLM; NVIDIA from Ada and Hopper on, AMD MI300; on Ampere with 16-bit activations",
    ),
    "w4a16": Scheme(
        preset="W4A16", modifier="GPTQModifier", bits=4, reads_rows=True, runs_in="vLLM; NVIDIA from Ampere on"
    ),
    "w4a16_awq": Scheme(
        preset="W4A16",
        modifier="AWQModifier",
        bits=4,
        reads_rows=True,
        needs_gpu=True,  # llm-compressor 0.14 asks torch.accelerator for one, also where it needs none
        runs_in="vLLM; NVIDIA from Ampere on",
    ),
    "mxfp4": Scheme(preset="MXFP4", modifier="QuantizationModifier", bits=4, refusal=_BLACKWELL),
    "nvfp4": Scheme(preset="NVFP4", modifier="QuantizationModifier", bits=4, refusal=_BLACKWELL),
}


def find_compressor() -> Path:
    """Return the Python of llm-compressor's environment.

    Raises:
        ModelError: If there is none, or compressed-tensors, which reads the result, is not installed here.
    """
    if importlib.util.find_spec("compressed_tensors") is None:
        raise ModelError(
            "Compressed models are read by compressed-tensors, which is not installed.",
            "Install it with `pip install 'loratory[compress]'`.",
        )
    setting = os.environ.get(ENVIRONMENT_VARIABLE)
    if not setting:
        raise ModelError(
            "Compressed models are written by llm-compressor, which needs an environment of its own.",
            "Make one with `python -m venv llm-compressor` and `llm-compressor/bin/pip install llmcompressor`, and name its "
            f"folder in {ENVIRONMENT_VARIABLE}.",
        )
    folder = typed_path(setting)
    python = next((folder / place for place in ("bin/python", "Scripts/python.exe") if (folder / place).exists()), None)
    if python is None:
        raise ModelError(
            f"{folder.name or 'The folder'} is not an environment of Python.",
            f"Name the folder that `python -m venv` made in {ENVIRONMENT_VARIABLE}.",
        )
    return python


def require_scheme(compression: Compression) -> None:
    """Check that a scheme can be written.

    Raises:
        ModelError: If it is refused, or a program is missing.
    """
    if refusal := SCHEMES[compression].refusal:
        raise ModelError(
            f"{compression} {refusal}.",
            "Choose fp8 or w4a16, or export it as merged and compress that with llm-compressor on such a GPU.",
        )
    find_compressor()


def require_device(compression: Compression, device: Device) -> None:
    """Check that a scheme can be computed on a device.

    Raises:
        ModelError: If it needs a GPU.
    """
    if SCHEMES[compression].needs_gpu and device.kind != "cuda":
        raise ModelError(
            f"{compression} needs a GPU, and this export is computed on {device.name}.",
            "Choose w4a16, or export it on a GPU.",
        )


def compress(order: Path, name: str, on_wait: Callable[[], None]) -> None:
    """Have llm-compressor carry out an order, which `loratory.engine.export.worker.llm_compressor` describes.

    Args:
        order: The file; the program's log is next to it while it runs.
        name: Of the model, for errors.
        on_wait: Called several times a second; may raise to stop.

    Raises:
        ModelError: If it cannot compress this model.
    """
    argv = (str(find_compressor()), "-I", str(_SCRIPT), str(order))
    code, output = run_program(argv, order.with_suffix(".log"), on_wait)
    if code:
        fact = f"llm-compressor cannot compress {name} ({last_line(output, code)})."
        raise ModelError(fact, "Export it as merged or GGUF instead.")


def predict_sizes(folder: Path, name: str) -> Mapping[str, int]:
    """Return the bytes of a merged model in every precision of GGUF files and by every scheme. Raises as `read_stored` does."""
    records, _ = read_stored(folder, name)
    return {**predict_gguf_sizes(folder, name), **predict_compressed_sizes(records)} if records else {}


def programs_for(precision: str) -> str:
    """Return what runs a model in a precision."""
    return SCHEMES[precision].runs_in if precision in SCHEMES else "llama.cpp, Ollama, LM Studio; CPU and GPU"


def predict_compressed_sizes(records: Sequence[TensorRecord]) -> Mapping[str, int]:
    """Return the bytes of a merged model with these tensors by scheme, of those that can be written."""
    widths = {record.shape[-1] for record in records if is_matrix_of_layer(record)}
    group = next((size for size in GROUP_SIZES if not any(width % size for width in widths)), 0)
    return {
        compression: sum(_bytes_of(record, scheme, group) for record in records)
        for compression, scheme in SCHEMES.items()
        if not scheme.refusal and (group or scheme.bits > 4)
    }


def _bytes_of(record: TensorRecord, scheme: Scheme, group: int) -> int:
    elements, element_bytes = math.prod(record.shape), 4 if record.dtype == "F32" else 2
    if not is_matrix_of_layer(record):
        return elements * element_bytes + _TENSOR_BYTES
    scales = elements // group if scheme.bits == 4 else record.shape[0]
    return elements * scheme.bits // 8 + scales * element_bytes + 3 * _TENSOR_BYTES
