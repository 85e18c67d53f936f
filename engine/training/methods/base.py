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
        arguments = adapter.traits.peft_arguments(adapter) | self.model_arguments(model, adapter, source)
        return getattr(peft, adapter.traits.peft_class)(task_type="CAUSAL_LM", **arguments)

    def model_arguments(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> dict[str, Any]:  # noqa: ARG002
        """Choose those of PEFT's arguments that depend on the model, such as the modules that get an adapter."""
        if not adapter.traits.adapts_layers:
            return {}
        saved = choose_saved_modules(model, adapter)
        return {"modules_to_save": saved, "target_modules": choose_targets(model, adapter)}

    def publish(self, config: Any, source: ModelSource) -> None:
        """Replace places on this machine in a configuration by names that other machines can look up."""
        config.base_model_name_or_path = source.hub_id or source.location
        config.revision = source.revision

    def prepare(self, model: Any) -> int:  # noqa: ARG002
        """Change the adapted model for training; returns how many trained tensors need no autocast afterwards."""
        return 0

    def initialize(self, model: Any, adapter: AdapterConfig, source: ModelSource) -> None:
        """Replace the random weights of a new adapter, if the method starts from others."""

    def observing(self, model: Any) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return the context of a first pass without gradient, from which `prepare` may learn what the model calls how."""
        return nullcontext()

    def step(self, model: Any) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return the context of all passes of one optimizer step, in which no trained weight changes."""
        return nullcontext()

    def optimizations(self, model: Any) -> dict[str, str]:  # noqa: ARG002
        """Return those of `engine.config.optimizations` that are the method's: why one is not used, "" where it is."""
        return {}

    def begin(self, model: Any, total_steps: int) -> None:
        """Prepare for this many optimizer steps, before the first one or a resumed one.

        Raises:
            ConfigError: If the settings need more steps.
        """

    def penalty(self, model: Any) -> torch.Tensor | None:  # noqa: ARG002
        """Return what is added to the loss of every optimizer step, or None."""
        return None

    def after_optimizer_step(self, model: Any, step: int) -> None:
        """Adjust the adapter after optimizer step `step`, counted from 1, while its gradients are still there."""

    def saving(self, model: Any) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return the context in which PEFT saves the adapter."""
        return nullcontext()

    def load_weights(self, model: Any, weights: dict[str, torch.Tensor], config: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """Give a freshly made adapter weights saved with a `config`; returns what PEFT reports about missing and unexpected ones."""
        return peft.set_peft_model_state_dict(model, weights)

    def state(self, model: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return what a checkpoint must hold besides the adapter's weights: tensors and plain values, nested."""
        return {}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
