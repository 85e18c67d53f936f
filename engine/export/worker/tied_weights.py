"""Weights that a model uses twice, such as an embedding that is its output head too, when only one use was trained."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.export.folder import rewrite_json
from engine.export.worker.merge import Merge

_TIE = "tie_word_embeddings"


def tied_weights(folder: Path) -> dict[str, str]:
    """Names of weights that are taken from another one, each with the name of that one; nothing is loaded."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def untie_changed(merge: Merge, ties: dict[str, str]) -> bool:
    """Give both uses of a weight a tensor of their own where the adapter changes one of them.

    PEFT trains a copy of the module that is named, so that the other use keeps the base's weight.

    Args:
        merge: What is to be written; takes the tensors that the base's files do not hold.
        ties: As `tied_weights` gives them.

    Returns:
        Whether a tie was undone, so that the configuration must say so.
    """
    changed = merge.changes.keys() | merge.added.keys()
    undone = False
    for pair in ties.items():
        if changed.isdisjoint(pair):
            continue
        undone = True
        stored = next((name for name in pair if name in merge.base.plans), None)
        for name in pair:
            if stored is not None and name not in merge.base.plans and name not in merge.added:
                merge.added[name] = merge.base.read(stored)
    return undone


def untie(model: PreTrainedModel) -> None:
    """The same for a model in memory: its head no longer follows its embedding."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for config in {id(each): each for each in (model.config, model.config.get_text_config(decoder=True))}.values():
            setattr(config, _TIE, False)


def say_untied(config_file: Path) -> None:
    """Write down that head and embedding are two, for programs that look at the configuration alone."""
    values = json.loads(config_file.read_text(encoding="utf-8"))
    parts = {name: values[name] for name in ("text_config", "language_config") if isinstance(values.get(name), dict)}
    rewrite_json(config_file, **{_TIE: False, **{name: {**part, _TIE: False} for name, part in parts.items()}})
