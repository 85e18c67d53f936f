"""P-tuning in training: an adapter holds what the prompt encoder computes, a checkpoint keeps the encoder too."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.training.methods.base import MethodTrainer

_ADAPTER = "default"


class PTuningTrainer(MethodTrainer):
    """PEFT's adapter whose encoder survives a resume."""

    @contextmanager
    def saving(self, model: Any) -> Iterator[None]:
        """Save what the encoder computes without dropout, and draw no random number for it."""
        encoder = model.prompt_encoder[_ADAPTER]
        was_training = encoder.training
        encoder.eval()
        try:
            yield
        finally:
            encoder.train(was_training)

    def state(self, model: Any) -> dict[str, Any]:
        """Return the weights of the prompt encoder."""
        return {"encoder": dict(model.prompt_encoder[_ADAPTER].state_dict())}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore the prompt encoder, in place of the embeddings that the adapter holds."""
        model.prompt_encoder[_ADAPTER].load_state_dict(state["encoder"])
