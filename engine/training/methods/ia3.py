"""IA3 in training: which of its modules are feed-forward layers."""

from typing import Any

from engine.config.run import AdapterConfig
from engine.training.methods.base import MethodTrainer
from engine.training.targets import choose_ia3_targets


class Ia3Trainer(MethodTrainer):
    """PEFT's adapter with feed-forward modules by their names."""

    def choose_modules(self, model: Any, adapter: AdapterConfig) -> dict[str, Any]:
        """Choose targets, and the feed-forward modules among them."""
        return choose_ia3_targets(model, adapter)._asdict()
