"""The many words that people have for the same setting: formats, precisions, methods, checkpointing."""

import re

from engine.config.methods.registry import METHODS
from engine.memory.workload import BaseFormat

_NOTHING = frozenset({"", "none", "no", "false", "off", "0", "disabled", "null", "n/a"})
_DENSE = frozenset({"16bit", "32bit", "fp16", "bf16", "fp32", "float16", "bfloat16", "float32", "unquantized", "dense"})
_FULL = frozenset({"full", "fullfinetuning", "fullfinetune", "fullft", "fft", "finetuning", "finetune", "sft"})
_WIDTHS = {
    "fp32": 4, "float32": 4, "f32": 4, "float": 4, "tf32": 4, "32bit": 4,
    "fp16": 2, "float16": 2, "f16": 2, "half": 2, "16bit": 2, "bf16": 2, "bfloat16": 2,
}  # fmt: skip


# Of PEFT, by its name for people; MiSS was called Bone at first.
_PEFT = {re.sub(r"[^a-z0-9]", "", method.label.casefold()): method.name for method in METHODS.values()}
_PEFT |= {"prefix": "prefix_tuning", "bone": "miss"}


def is_nothing(text: str) -> bool:
    """Return whether a text means none."""
    return text.strip().casefold() in _NOTHING


def base_format(text: str) -> BaseFormat | None:
    """How the frozen weights are held, by its name; None where it is not one that is modelled."""
    words = parts_of(text)
    joined = "".join(words)
    if is_nothing(text) or (words and words[0] in _DENSE):
        return "dense"
    if any(part in joined for part in ("awq", "hqq", "aqlm", "exl2", "gguf", "eetq", "quanto", "fp8", "torchao")):
        return None
    if "gptq" in joined:
        return "gptq"
    if "nf4" in joined:
        return "nf4"
    if "fp4" in joined:
        return "fp4"
    if any(part in joined for part in ("int8", "8bit")):
        return "int8"
    # Who names only the bits means bitsandbytes' format, and with it nearly always nf4.
    return "nf4" if any(part in joined for part in ("int4", "4bit", "qlora", "u4")) else None


def has_double_quant(text: str) -> bool:
    """Whether the name of a format reports that its scales are quantized too."""
    words = parts_of(text)
    if "dq" not in words and "double" not in "".join(words):
        return False
    return not re.search(r"(no|without)\W*(dq|double)|(dq|double\w*)\W*(false|off|no)\b", text.casefold())


def method_kind(text: str) -> tuple[str, bool] | None:
    """What is trained ("full", "dora" or a method's name), and whether that name promises a base of 4 bits.

    Returns:
        None where it is not modelled.
    """
    joined = "".join(parts_of(text))
    if joined in _FULL:
        return "full", False
    if joined in ("lora", "rslora", "qlora", "dora", "qdora", "qrslora", "loraplus", "4bitlora", "lora4bit"):
        return ("dora" if joined.endswith("dora") else "lora"), joined.startswith("q") or "4bit" in joined
    return (_PEFT[joined], False) if joined in _PEFT else None


def width_of_dtype(text: str) -> int | None:
    """Bytes per element of the precision that is named first; None where it is not known."""
    return next((_WIDTHS[word] for word in parts_of(text)[:2] if word in _WIDTHS), None)


def is_float16(text: str) -> bool:
    """Whether 16 bits mean float16, not bfloat16."""
    return next((word for word in parts_of(text)[:2] if word in _WIDTHS), "") in ("fp16", "float16", "f16", "half")


def parts_of(text: str) -> list[str]:
    """Words and numbers in small letters, bits with their number: "torch.BF16 (8-bit)" → torch, bf16, 8bit."""
    together = re.sub(r"(\d+)[\s_-]*bits?\b", r"\1bit", text.casefold())
    return re.findall(r"[a-z0-9]+", together)
