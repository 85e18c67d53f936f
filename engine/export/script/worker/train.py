"""The main function of a script: rows, model, trainer and the result."""

import argparse
import json
import math
import random
from pathlib import Path

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback
from trl import DPOConfig, KTOConfig, SFTConfig  # noqa: F401 - a script names one of them
from trl.experimental.orpo import ORPOConfig  # noqa: F401

from engine.export.script.facts import facts
from engine.export.script.worker.batches import ACCUMULATE, BATCH, Batches, collate, length_of
from engine.export.script.worker.encoding import MODEL, load_tokenizer
from engine.export.script.worker.model import load_model
from engine.export.script.worker.preference_batches import collate_preferences
from engine.export.script.worker.prepare import DATA, SEED, prepare
from engine.export.script.worker.trainer import Trainer
from engine.training.batching.steps import choose_measured

OUTPUT = facts.output


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="Hub id or folder of the base model")
    if facts.data.kind == "hub":
        parser.add_argument("--data", default=DATA, help="dataset on the Hub")
    else:
        parser.add_argument("--data", nargs="+", default=DATA, help="files with the rows")
    parser.add_argument("--output", default=OUTPUT, help="folder for the result")
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.model)
    train, evaluation = prepare(tokenizer, options)
    print(f"{len(train)} sequences to train on, {len(evaluation)} held out")
    if facts.measures and facts.data.held_out_draw:
        tokens = sum(map(length_of, train))
        if facts.config.training.max_steps > 0:
            epochs = facts.config.training.max_steps / math.ceil(len(Batches(train, lambda: 0)) / ACCUMULATE)
        else:
            epochs = facts.config.training.num_train_epochs
        numbers = choose_measured([length_of(row) for row in evaluation], int(tokens * epochs), SEED)
        evaluation = [evaluation[row] for row in numbers]

    torch.manual_seed(SEED)  # the adapter starts from random numbers
    random.seed(SEED)
    model = load_model(options.model)
    if facts.is_quantized:
        start_weights = {
            name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad
        }
    if facts.estimates_kl:
        fewest = 2  # TRL requires batches of two rows for its own estimate; the batches are the run's
    arguments = facts.trl_config(
        output_dir=options.output,
        per_device_train_batch_size=max(BATCH, fewest) if facts.estimates_kl else BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        seed=SEED,
        **facts.trainer_arguments,
        **facts.objective_arguments,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    callbacks = facts.method_callbacks
    if facts.patience is not None:
        callbacks = [*callbacks, EarlyStoppingCallback(facts.patience)]
    if facts.copies_adapter and facts.config.adapter.traits.regularized:
        # TRL copies the adapter as a reference; of this kind, PEFT allows only one that is trained.
        model.peft_config["default"].inference_mode = True
    trainer = Trainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        **({"data_collator": collate} if not facts.learns_preferences else {}),
        **({"data_collator": collate_preferences} if facts.copies_adapter else {}),
        train_dataset=Dataset.from_list(train),
        **({"eval_dataset": Dataset.from_list(evaluation)} if facts.measures else {}),
        callbacks=callbacks,
    )
    if facts.copies_adapter and facts.config.adapter.traits.regularized:
        model.peft_config["default"].inference_mode = False
    if facts.copies_adapter and not facts.model.warm_start:
        trainer.model.delete_adapter("ref")  # TRL's copy of the new adapter; the run's reference is the base
    if facts.is_quantized:
        for name, parameter in trainer.model.named_parameters():
            start = start_weights.get(name.replace(".ref.", ".default."))
            if start is not None:
                parameter.data = start.clone()  # TRL casts them to bfloat16 on a quantized base
    trainer.train()
    if facts.measures and trainer.state.global_step % trainer.state.eval_steps:
        trainer.evaluate()

    if facts.saved_dtype is not None:
        trainer.model.to(getattr(torch, facts.saved_dtype))
    if facts.copies_adapter and facts.model.warm_start:
        trainer.model.save_pretrained(options.output, selected_adapters=["default"])
    else:
        trainer.model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    Path(options.output, "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=1))
