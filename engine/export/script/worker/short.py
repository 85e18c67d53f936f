"""The short form of a script, as in the usual tutorials: load, train with TRL, merge, push."""

import json
from typing import Any

import peft
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

from engine.export.script.facts import facts
from engine.export.script.worker.model import start_prefix

MODEL = facts.model.location
DATA = facts.data_location
OUTPUT = facts.output
CHAT_TEMPLATE = facts.model.tokenizer.written_template
ROLES = facts.data.roles


def to_prompt_completion(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in TRL's prompt-completion format."""
    if "instruction" in facts.data.columns and "input" in facts.data.columns:
        parts = (row[facts.data.columns["instruction"]], row[facts.data.columns["input"]] or "")
        question, answer = "\n\n".join(part for part in parts if part.strip()), row[facts.data.columns["output"]]
    elif "instruction" in facts.data.columns:
        question, answer = row[facts.data.columns["instruction"]], row[facts.data.columns["output"]]
    elif "prompt" in facts.data.columns:
        question, answer = row[facts.data.columns["prompt"]], row[facts.data.columns["completion"]]
    else:
        if facts.data.has_json_columns:
            turns = json.loads(row[facts.data.conversation_column])
        else:
            turns = row[facts.data.conversation_column]
        messages = [
            {"role": ROLES[turn[facts.data.role_field]], "content": turn[facts.data.content_field]} for turn in turns
        ]
        last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
        return {"prompt": messages[:last], "completion": messages[last : last + 1]}
    return {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}


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
    if facts.data.kind == "hub":
        dataset = load_dataset(DATA, **facts.hub_arguments)
    else:
        dataset = load_dataset(**facts.data.loader_arguments, data_files=DATA, split="train")
    if facts.data.has_turns:
        dataset = dataset.map(to_prompt_completion, remove_columns=dataset.column_names)
    if facts.measures:
        dataset = dataset.train_test_split(facts.config.dataset.eval_fraction, seed=facts.config.training.seed)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=dataset["train"] if facts.measures else dataset,
        **({"eval_dataset": dataset["test"]} if facts.measures else {}),
        args=SFTConfig(
            output_dir=OUTPUT,
            **facts.short_trainer_arguments,
        ),
        **(
            {"peft_config": getattr(peft, facts.config.adapter.traits.peft_class)(**facts.short_peft_arguments)}
            if not facts.config.adapter.traits.trains_all
            else {}
        ),
        **({"callbacks": [EarlyStoppingCallback(facts.patience)]} if facts.patience is not None else {}),
    )
    if facts.initial_text and not facts.model.warm_start:
        start_prefix(trainer.model, tokenizer)
    trainer.train()
    trainer.save_model(OUTPUT)
    if facts.config.adapter.traits.mergeable and not facts.config.adapter.traits.trains_all:
        if facts.is_quantized:
            base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, facts.loaded_dtype))
            merged_model = peft.PeftModel.from_pretrained(base, OUTPUT).merge_and_unload()
        else:
            merged_model = trainer.model.merge_and_unload()
        # Or merged.push_to_hub("you/your-model"), and the same for the tokenizer, after `hf auth login`.
        merged_model.save_pretrained(f"{OUTPUT}-merged")
        tokenizer.save_pretrained(f"{OUTPUT}-merged")
