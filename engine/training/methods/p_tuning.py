"""P-tuning in training: an adapter holds what the prompt encoder computes, so that a checkpoint must keep the encoder."""

from typing import Any

from engine.training.methods.base import MethodTrainer

_ADAPTER = "default"


class PTuningTrainer(MethodTrainer):
    """PEFT's adapter whose encoder survives a resume."""

    def state(self, model: Any) -> dict[str, Any]:
        """Return the weights of the prompt encoder."""
        return {"encoder": dict(model.prompt_encoder[_ADAPTER].state_dict())}

    def load_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore the prompt encoder, in place of the embeddings that the adapter holds."""
        model.prompt_encoder[_ADAPTER].load_state_dict(state["encoder"])
