"""How a PEFT method is put on a model and what it does while the model trains."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import peft
import torch

from engine.config.run import AdapterConfig
from engine.models.source import ModelSource
from engine.training.targets import choose_saved_modules, choose_targets


class MethodTrainer:
    """One method in training. It keeps nothing itself: what it must remember is in the model."""

    def peft_config(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> Any:
        """Build PEFT's configuration.

        Raises:
            ConfigError: If target modules or saved modules match nothing.
            ValueError: If PEFT refuses the settings.
        """
        del source
        modules: dict[str, Any] = {}
        if adapter.traits.adapts_layers:
            modules["modules_to_save"] = choose_saved_modules(model, adapter)
            modules |= self.choose_modules(model, adapter)
        return self.configuration(adapter, {**adapter.traits.peft_arguments(adapter), **modules})

    @staticmethod
    def configuration(adapter: AdapterConfig, arguments: Mapping[str, Any]) -> Any:
        """Build an object of PEFT's configuration class."""
        return getattr(peft, adapter.traits.peft_class)(task_type="CAUSAL_LM", **arguments)

    def publish(self, config: Any, source: ModelSource) -> None:
        """Replace places on this machine in a configuration by names that other machines can look up."""
        config.base_model_name_or_path = source.hub_id or source.location
        config.revision = source.revision

    def choose_modules(self, model: Any, adapter: AdapterConfig) -> dict[str, Any]:
        """Choose the modules that get an adapter, under the names of PEFT's arguments."""
        return {"target_modules": choose_targets(model, adapter)}

    def prepare(self, model: Any) -> int:
        """Change the adapted model for training; returns how many trained tensors need no autocast afterwards."""
        del model
        return 0

    def begin(self, model: Any, total_steps: int) -> None:
        """Prepare for this many optimizer steps, before the first one or a resumed one.

        Raises:
            ConfigError: If the settings need more steps.
        """
        del model, total_steps

    def penalty(self, model: Any) -> torch.Tensor | None:
        """Return what is added to the loss of every optimizer step, or None."""
        del model
        return None

    def after_optimizer_step(self, model: Any, step: int) -> None:
        """Adjust the adapter after optimizer step `step`, counted from 1, while its gradients are still there."""
        del model, step

    def saving(self, model: Any) -> AbstractContextManager[None]:
        """Return the context in which PEFT saves the adapter."""
        del model
        return nullcontext()

    def load_weights(self, model: Any, weights: dict[str, torch.Tensor], config: Mapping[str, Any]) -> Any:
        """Give a freshly made adapter saved weights; returns what PEFT says of missing and unexpected ones.

        Args:
            model: With the adapter.
            weights: Of adapter_model.safetensors.
            config: Of adapter_config.json.
        """
        del config
        return peft.set_peft_model_state_dict(model, weights)

    def state(self, model: Any) -> dict[str, Any]:
        """Return what a checkpoint must hold besides the adapter's weights: tensors and plain values, nested."""
        del model
        return {}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        del model, state
