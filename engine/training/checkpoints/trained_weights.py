"""Save and load what was trained, as PEFT and transformers load it: an adapter or a model, with its tokenizer."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from engine.runs.checkpoints import ADAPTER_SUBFOLDER
from engine.training.checkpoints.state_files import load_nested, load_plain, save_nested
from engine.training.methods.registry import trainer_of_model

_ADAPTER_CONFIG = "adapter_config.json"
_METHOD_STATE = "method.safetensors"  # what the method keeps besides the weights
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MODEL_WEIGHTS = "*.safetensors"


def save_trained(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `adapter/` below a checkpoint: the adapter (or, for full fine-tuning, the model) and its tokenizer.

    Args:
        model: The trained model.
        tokenizer: With the frozen chat template.
        folder: The checkpoint.
        dtype: Rounds a fully trained model; None keeps the float32 that training continues from.
    """
    save_adapter(model, tokenizer, folder / ADAPTER_SUBFOLDER, dtype)
    state = trainer_of_model(model).state(model)
    if state:
        save_nested(state, folder / _METHOD_STATE)


def save_adapter(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write what was trained into one folder, as PEFT's and transformers' `from_pretrained` take it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_adapter(model):
        # PEFT would ask the Hub whether the vocabulary grew. It cannot have: embeddings that are trained are either
        # adapted or among modules_to_save, and both are saved.
        with trainer_of_model(model).saving(model):
            model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    elif dtype is None:
        model.save_pretrained(str(folder))
    else:
        rounded = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
        config_dtype = model.config.dtype
        model.config.dtype = dtype
        try:
            model.save_pretrained(str(folder), state_dict=rounded)
        finally:
            model.config.dtype = config_dtype
    tokenizer.save_pretrained(str(folder))


def load_trained(model: Any, checkpoint: Path) -> None:
    """Give a model of the same make the weights of a checkpoint, bit by bit.

    Raises:
        ValueError: If the checkpoint lacks something that is trained.
    """
    folder = checkpoint / ADAPTER_SUBFOLDER
    if _is_adapter(model):
        trainer, config = trainer_of_model(model), load_plain(folder / _ADAPTER_CONFIG)
        trainer.load_weights(model, load_file(folder / _ADAPTER_WEIGHTS), config)
        if (checkpoint / _METHOD_STATE).is_file():
            trainer.load_state(model, load_nested(checkpoint / _METHOD_STATE))
        return
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob(_MODEL_WEIGHTS)):
        weights |= load_file(path)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    lost = [name for name in missing if name not in tied]
    if lost or unexpected:
        raise ValueError(f"the checkpoint does not fit the model: {(lost or unexpected)[0]}")


def _is_adapter(model: Any) -> bool:
    return hasattr(model, "peft_config")


def parameters_line(trainable: int, total: int) -> str:
    """Return the line that PEFT prints, for the log."""
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}"


def count_parameters(model: Any) -> tuple[int, int]:
    """Trainable parameters and all of them, packed weights counted as what they hold, as PEFT counts."""
    if hasattr(model, "get_nb_trainable_parameters"):
        trainable, total = model.get_nb_trainable_parameters()
        return int(trainable), int(total)
    total = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total
