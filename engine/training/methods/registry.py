"""The training of each PEFT method. A method that is not here trains as PEFT builds it."""

from typing import Any

from engine.config.methods.registry import method_of_peft_type
from engine.training.methods.adalora import AdaLoraTrainer
from engine.training.methods.base import MethodTrainer
from engine.training.methods.ia3 import Ia3Trainer
from engine.training.methods.lora import LoraTrainer
from engine.training.methods.p_tuning import PTuningTrainer
from engine.training.methods.prompt_tuning import PromptTuningTrainer

METHOD_TRAINERS: dict[str, MethodTrainer] = {
    "lora": LoraTrainer(),
    "adalora": AdaLoraTrainer(),
    "ia3": Ia3Trainer(),
    "prompt_tuning": PromptTuningTrainer(),
    "p_tuning": PTuningTrainer(),
}
_PLAIN = MethodTrainer()


def method_trainer(method: str) -> MethodTrainer:
    """Return the trainer of a method."""
    return METHOD_TRAINERS.get(method, _PLAIN)


def trainer_of_model(model: Any) -> MethodTrainer:
    """Return the trainer of the method that a model has an adapter of."""
    for config in getattr(model, "peft_config", {}).values():
        method = method_of_peft_type(str(getattr(config.peft_type, "value", config.peft_type)))
        return method_trainer(method.name) if method is not None else _PLAIN
    return _PLAIN
