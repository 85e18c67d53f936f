"""The short form of a script for preferences, as in the usual tutorials: TRL's trainer of DPO, KTO or ORPO."""

import json
import re
from typing import Any

import peft
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, EarlyStoppingCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer  # noqa: F401 - a script names one of them
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: F401

from engine.export.script.facts import facts
from engine.export.script.worker.model import start_prefix

MODEL = facts.model.location
DATA = facts.data_location
OUTPUT = facts.output
CHAT_TEMPLATE = facts.model.tokenizer.written_template
ROLES = facts.data.roles
WARM_START = facts.model.warm_start


def turns_of(value: Any, role: str) -> list[dict[str, str]]:
    """Return a cell as chat messages: a text becomes one turn of that role."""
    if not facts.data.turn_columns:
        return [{"role": role, "content": value}]
    if facts.data.has_json_columns and isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [
        {"role": ROLES[turn[facts.data.role_field].strip().lower()], "content": turn[facts.data.content_field]}
        for turn in (value if isinstance(value, list) else [value])
    ]


def dialogue(text: str) -> list[dict[str, str]]:
    """Return a text with Human: and Assistant: before its turns as chat messages."""
    pieces = re.split(r"\n\n(Human|Assistant):", text)
    names = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": names[name], "content": words.strip()} for name, words in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def to_preference(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in TRL's preference format."""
    if facts.data.is_rated:
        answer = turns_of(row[facts.data.columns["completion"]], "assistant")
        label = str(row[facts.data.columns["label"]]).lower() in ("true", "1")
        if "prompt" in facts.data.columns:
            return {"prompt": turns_of(row[facts.data.columns["prompt"]], "user"), "completion": answer, "label": label}
        return {"prompt": answer[:-1], "completion": answer[-1:], "label": label}
    if facts.data.has_dialogues:
        chosen, rejected = dialogue(row[facts.data.columns["chosen"]]), dialogue(row[facts.data.columns["rejected"]])
    else:
        chosen = turns_of(row[facts.data.columns["chosen"]], "assistant")
        rejected = turns_of(row[facts.data.columns["rejected"]], "assistant")
    if "conversations" in facts.data.columns:
        prompt = turns_of(row[facts.data.columns["conversations"]], "user")
    elif "instruction" in facts.data.columns and "input" in facts.data.columns:
        parts = (row[facts.data.columns["instruction"]], row[facts.data.columns["input"]] or "")
        prompt = [{"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}]
    elif "instruction" in facts.data.columns:
        prompt = [{"role": "user", "content": row[facts.data.columns["instruction"]]}]
    elif "prompt" in facts.data.columns and not facts.data.holds_whole_conversations:
        prompt = turns_of(row[facts.data.columns["prompt"]], "user")
    else:
        prompt = []
        while chosen and rejected and chosen[0] == rejected[0]:
            prompt.append(chosen.pop(0))
            rejected.pop(0)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def main() -> None:
    """Train, merge and save."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if facts.model.tokenizer.written_template and facts.model.tokenizer.default_template != "if_missing":
        tokenizer.chat_template = CHAT_TEMPLATE
    if facts.is_quantized:
        quantization = BitsAndBytesConfig(
            **facts.quantization_arguments,
        )
    model = AutoModelForCausalLM.from_pretrained(
        MODEL,
        dtype=getattr(torch, facts.loaded_dtype),
        **facts.model_arguments,
        **({"quantization_config": quantization} if facts.is_quantized else {}),
    )
    if facts.model.warm_start:
        # The trainer copies this adapter as its reference.
        model = peft.PeftModel.from_pretrained(model, WARM_START, is_trainable=True)
    if facts.data.kind == "hub":
        dataset = load_dataset(DATA, **facts.hub_arguments)
    else:
        dataset = load_dataset(**facts.data.loader_arguments, data_files=DATA, split="train")
    dataset = dataset.map(to_preference, remove_columns=dataset.column_names)
    if facts.measures:
        dataset = dataset.train_test_split(facts.config.dataset.eval_fraction, seed=facts.config.training.seed)
    trainer = facts.trl_trainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=dataset["train"] if facts.measures else dataset,
        **({"eval_dataset": dataset["test"]} if facts.measures else {}),
        args=facts.trl_config(
            output_dir=OUTPUT,
            **facts.preference_arguments,
        ),
        **(
            {"peft_config": getattr(peft, facts.config.adapter.traits.peft_class)(**facts.short_peft_arguments)}
            if not facts.config.adapter.traits.trains_all and not facts.model.warm_start
            else {}
        ),
        **({"callbacks": [EarlyStoppingCallback(facts.patience)]} if facts.patience is not None else {}),
    )
    if facts.initial_text and not facts.model.warm_start:
        start_prefix(trainer.model, tokenizer)
    trainer.train()
    trainer.save_model(OUTPUT)
    if facts.config.adapter.traits.mergeable and not facts.config.adapter.traits.trains_all:
        base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, facts.loaded_dtype))
        merged_model = peft.PeftModel.from_pretrained(base, OUTPUT).merge_and_unload()
        # Or merged.push_to_hub("you/your-model"), and the same for the tokenizer, after `hf auth login`.
        merged_model.save_pretrained(f"{OUTPUT}-merged")
        tokenizer.save_pretrained(f"{OUTPUT}-merged")
