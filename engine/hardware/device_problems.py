"""Settings that a device cannot run, told before anything is made."""

from engine.config.model import ModelConfig
from engine.config.run import RunConfig
from engine.errors import Problem
from engine.hardware.device import Device
from engine.hardware.libraries import library_version

_GPU_OPTIMIZERS = {
    "adamw_8bit": "adamw_torch",
    "paged_adamw_8bit": "adamw_torch",
    "paged_adamw_32bit": "adamw_torch",
}

# The first that has kernels for Apple's GPU (bitsandbytes/backends/mps).
BITSANDBYTES_WITH_MPS = (0, 50)


def device_problems(config: RunConfig, device: Device) -> list[Problem]:
    """Settings that the device cannot run, each with the nearest that it can."""
    problems = []
    training, model = config.training, config.model
    if device.kind == "cuda":
        return []
    where = "Apple's GPU" if device.kind == "mps" else "the CPU"
    nearest = _GPU_OPTIMIZERS.get(training.optim)
    if nearest is not None:
        message = f"{training.optim} needs a CUDA device, and this run would use {where}; {nearest} is the nearest."
        problems.append(Problem("training.optim", message))
    if model.attn_implementation == "flash_attention_2":
        message = f"flash_attention_2 needs a CUDA device, and this run would use {where}; sdpa is the nearest."
        problems.append(Problem("model.attn_implementation", message))
    if model.compute_dtype == "float16" and device.kind == "cpu":
        message = "float16 trains on GPUs only, and this run would use the CPU; auto chooses what it can."
        problems.append(Problem("model.compute_dtype", message))
    if (
        device.kind == "cpu"
        and model.quantization == "int8"
        and "use_dora" in config.adapter.traits.fields
        and config.adapter.use_dora
    ):
        message = "PEFT cannot read back the lengths of int8 weights on a CPU, which DoRA needs; nf4 is the nearest."
        problems.append(Problem("adapter.use_dora", message))
    return [*problems, *(_apple_problems(model, device) if device.kind == "mps" else ())]


def _apple_problems(model: ModelConfig, device: Device) -> list[Problem]:
    """What an older system or an older bitsandbytes cannot do on Apple's GPU.

    Source: the table of platforms in bitsandbytes' README: macOS 14 for int8 and 4 bits, 8-bit optimizers still to come.
    """
    problems = []
    has_macos_14 = device.has_fast_bfloat16  # this is what decides it
    if model.compute_dtype == "bfloat16" and not has_macos_14:
        message = "bfloat16 on Apple's GPU needs macOS 14; float32 is the nearest, and float16 takes as little memory."
        problems.append(Problem("model.compute_dtype", message))
    if model.quantization == "none":
        return problems
    installed = library_version("bitsandbytes") or "missing"
    missing = [] if has_macos_14 else ["macOS 14"]
    if version_parts(installed) < BITSANDBYTES_WITH_MPS:
        missing.append(f"bitsandbytes {'.'.join(map(str, BITSANDBYTES_WITH_MPS))} (this is {installed})")
    if missing:
        message = (
            f"{model.quantization} weights on Apple's GPU need {' and '.join(missing)}. Update, set none for 16-bit weights, "
            "or set run.devices to cpu, where they work."
        )
        problems.append(Problem("model.quantization", message))
    return problems


def version_parts(version: str, count: int = 2) -> tuple[int, ...]:
    """Return the first numbers of a version, to be compared: 0.50.2.dev0 → (0, 50)."""
    return tuple(int(part) for part in version.split(".")[:count] if part.isdigit())
