"""Adapters of every method on the tiny model, with weights that are random and not zero."""

from pathlib import Path
from typing import Any

from loratory.engine.config.load import config_from_mapping, config_to_yaml


def make_adapter(base: Path, folder: Path, config: object, *, seed: int = 1, scale: float = 0.3) -> Path:
    """Save an adapter whose every trained tensor is random, as it might be after training.

    Args:
        base: Folder of the model.
        folder: Created; takes the adapter.
        config: A PEFT configuration.
        seed: Of the random weights.
        scale: Their standard deviation, added to what PEFT begins with.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoTokenizer

    from loratory.engine.models.folder import family_in
    from loratory.engine.training.image_parts import model_class_of

    model = model_class_of(family_in(base, base.name)).from_pretrained(base)
    torch.manual_seed(seed)
    peft = get_peft_model(model, config)
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * scale
    peft.peft_config["default"].base_model_name_or_path = str(base)
    peft.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def write_trained_run(folder: Path, base: Path, adapter_config: object, **sections: dict[str, Any]) -> Path:
    """Write what a finished run leaves that can be talked to, exported and measured: its adapter and its configuration."""
    values: dict[str, dict[str, Any]] = {
        "model": {"id": str(base)},
        "dataset": {"source": "/home/somebody/secret-data/rows.jsonl"},
        "run": {"name": "my run"},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    make_adapter(base, folder / "adapter", adapter_config)
    (folder / "config.yaml").write_text(config_to_yaml(config_from_mapping(values)))
    return folder


def load_base(folder: Path, **loading: Any):
    """Load a model for the chat, to which adapters can be attached."""
    from transformers import AutoModelForCausalLM

    from loratory.engine.chat.worker.adapter import AdaptedBase

    return AdaptedBase(AutoModelForCausalLM.from_pretrained(folder, **loading).eval(), "tiny")


def attach(base: Any, folder: Path, method: str = "lora", branch: str = "tuned"):
    """Attach an adapter, and return the branch that answers with it."""
    from loratory.engine.chat.target import PlannedWeights
    from loratory.engine.chat.worker.weights import BranchWeights

    planned = PlannedWeights(folder=folder, name=folder.name, method=method, peft_type=method.upper())
    return BranchWeights(base, base.attach(planned, branch))


def lora(**values: object):
    """Return a LoRA configuration on two kinds of layers."""
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **values})


def ia3():
    """Return an IA3 configuration."""
    from peft import IA3Config

    return IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])


def prefix_tuning(num_virtual_tokens: int = 5):
    """Return a prefix tuning configuration."""
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens)


def prompt_tuning():
    """Return a prompt tuning configuration."""
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=30)


def p_tuning():
    """Return a p-tuning configuration."""
    from peft import PromptEncoderConfig

    return PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=30, encoder_hidden_size=32)
