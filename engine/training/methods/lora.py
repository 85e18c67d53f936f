"""LoRA in training: its plain layers run Loratory's own branch."""

from typing import Any

from engine.training.methods.base import MethodTrainer
from engine.training.ops.lora_branch import make_lora_quick


class LoraTrainer(MethodTrainer):
    """PEFT's adapter with the branch of `engine.training.ops.lora_branch`."""

    def prepare(self, model: Any) -> int:
        """Replace the forward pass of plain layers, whose two matrices then need no autocast."""
        return 2 * make_lora_quick(model)
