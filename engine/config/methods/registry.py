"""All PEFT methods, in the order in which people choose among them. A new one is added here."""

from loratory.engine.config.methods.adalora import AdaLora, AdaLoraSettings
from loratory.engine.config.methods.base import FullFineTuning, PeftMethod, SharedSettings
from loratory.engine.config.methods.ia3 import Ia3, Ia3Settings
from loratory.engine.config.methods.lora import Lora, LoraSettings, Vera, VeraSettings
from loratory.engine.config.methods.lycoris import LoHa, LoKr, LoKrSettings, LycorisSettings
from loratory.engine.config.methods.miss import Miss, MissSettings
from loratory.engine.config.methods.oft import Oft, OftSettings
from loratory.engine.config.methods.virtual_tokens import (
    PrefixTuning,
    PrefixTuningSettings,
    PromptTuning,
    PromptTuningSettings,
    PTuning,
    PTuningSettings,
)

_CLASSES = (Lora, AdaLora, LoHa, LoKr, Oft, Vera, Miss, Ia3, PrefixTuning, PromptTuning, PTuning, FullFineTuning)
_ALL: tuple[PeftMethod, ...] = tuple(method() for method in _CLASSES)
METHODS: dict[str, PeftMethod] = {method.name: method for method in _ALL}
DEFAULT_METHOD = _ALL[0]
FULL_FINE_TUNING: PeftMethod = next(method for method in _ALL if method.trains_all)


class MethodSettings(  # fields come in the order of these classes, the last one first
    PTuningSettings,
    PrefixTuningSettings,
    PromptTuningSettings,
    LycorisSettings,
    LoKrSettings,
    OftSettings,
    VeraSettings,
    MissSettings,
    AdaLoraSettings,
    Ia3Settings,
    LoraSettings,
    SharedSettings,
):
    """Settings of all methods; each reads those in its `fields` and ignores the rest."""


def method_of_peft_type(peft_type: str) -> PeftMethod | None:
    """Return the method of an adapter_config.json, or None for a method that Loratory does not train."""
    return next((method for method in _ALL if method.peft_type == peft_type), None)


def tensor_marks() -> tuple[str, ...]:
    """Return the parts of names that distinguish an adapter's tensors and modules from those of its base."""
    return tuple(dict.fromkeys(mark for method in _ALL for mark in method.tensor_marks))
