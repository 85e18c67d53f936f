"""The part of a script that loads the model and trains it in the order of the run, with what single PEFT methods need."""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from datasets import Dataset
from peft import get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from engine.data.step_plan import pack_rows
from engine.export.script.facts import facts
from engine.export.script.worker.encoding import (
    MAX_LENGTH,
    MODEL,
    REVISION,
    RefusedRowError,
    encode_row,
    load_tokenizer,
)
from engine.export.script.worker.rows import DATA, SEED, held_out, load_rows, require_rows_of_run
from engine.training.batching.steps import choose_measured

OUTPUT = facts.output
BATCH = facts.config.training.per_device_train_batch_size
ACCUMULATE = facts.config.training.gradient_accumulation_steps  # batches in one optimizer step
MAX_SAMPLES = facts.config.dataset.max_samples or 0
WARM_START = facts.model.warm_start  # adapter that training starts from


class AllocateRanks(TrainerCallback):  # type: ignore[misc]
    """Moves ranks to the layers that need them, which PEFT leaves to the trainer."""

    def on_train_begin(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        model.peft_config["default"].total_step = state.max_steps

    def on_optimizer_step(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        model.base_model.update_and_allocate(state.global_step + 1)


def orthogonality(model: Any) -> Any:
    """Return AdaLoRA's regularizer, which PEFT adds to a model's own loss and not to TRL's."""
    distances = []
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            products = parameter @ parameter.T if ".lora_A." in name else parameter.T @ parameter
            distances.append(torch.linalg.matrix_norm(products - torch.eye(len(products), device=products.device)))
    return model.peft_config["default"].orth_reg_weight * torch.stack(distances).mean()


def linear_names(model: Any) -> list[str]:
    """Return the names of the linear layers, without the output head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    ]


def feedforward_modules(model: Any) -> list[str]:
    """Return the ends of the names of the feed-forward modules that the model has."""
    names = [f".{name}" for name in linear_names(model)]
    return [end for end in facts.feedforward_endings if any(name.endswith(f".{end}") for name in names)]


def ia3_targets(model: Any) -> list[str]:
    """Return the ends of the names of all modules that IA3 rescales; PEFT wants the feed-forward ones among them."""
    if facts.config.adapter.target_modules == "all-linear":
        targets = [name.rsplit(".", 1)[-1] for name in linear_names(model)]
    else:
        targets = list(facts.config.adapter.target_modules)
    return sorted({*targets, *feedforward_modules(model)})


def load_model(name: str) -> Any:
    """Load the model with what is trained."""
    if facts.quantized:
        quantization = BitsAndBytesConfig(
            **facts.quantization_arguments,
        )
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=getattr(torch, facts.loaded_dtype),
        **facts.model_arguments,
        **({"revision": REVISION if name == MODEL else None} if facts.model.revision else {}),
        **({"quantization_config": quantization} if facts.quantized else {}),
    )
    model.config.use_cache = False
    if facts.config.model.quantization in ("nf4", "fp4") and facts.model.on_cpu:
        for module in model.modules():
            # bitsandbytes would repack 4-bit weights for inference at the first evaluation, and cannot train through those.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if not facts.config.adapter.traits.trains_all:
        settings = getattr(peft, facts.config.adapter.traits.peft_class)(
            task_type="CAUSAL_LM",
            **facts.peft_arguments,
        )
        model = get_peft_model(model, settings)
        if facts.model.warm_start:
            set_peft_model_state_dict(model, load_file(f"{WARM_START}/adapter_model.safetensors"))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # trained weights are held in float32
        model.print_trainable_parameters()
    return model


class Batches(IterableDataset):  # type: ignore[misc]
    """The run's batches: shuffled for each epoch by seed and epoch alone."""

    def __init__(self, rows: list[Any], epoch: Callable[[], int]) -> None:
        self.rows, self.epoch = rows, epoch
        self.lengths = [len(row["input_ids"]) for row in rows]

    def __len__(self) -> int:
        if facts.config.training.packing:
            return math.ceil(len(pack_rows(range(len(self.rows)), self.lengths, MAX_LENGTH)) / BATCH)
        return math.ceil(len(self.rows) / BATCH)

    def shuffled(self, items: Iterable[Any]) -> list[Any]:
        """Return the items in the order of this epoch."""
        items = list(items)
        random.Random(SEED * 1_000_003 + self.epoch()).shuffle(items)  # noqa: S311
        return items

    if facts.model.grouped:

        def grouped(self, order: list[int]) -> list[int]:
            """Return the rows with those of similar length in one step, so little is computed for padding."""
            size = BATCH * ACCUMULATE
            block = size * max(1, min(50, math.ceil(len(order) / size) // 4))
            whole = len(order) - len(order) % size
            steps = []
            for begin in range(0, whole, block):
                similar = sorted(order[begin : min(begin + block, whole)], key=lambda row: -self.lengths[row])
                steps += [similar[start : start + size] for start in range(0, len(similar), size)]
            rest = sorted(order[whole:], key=lambda row: -self.lengths[row])
            return [row for step in [*self.shuffled(steps), rest] for row in step]

    def __iter__(self) -> Iterator[list[Any]]:
        order = self.shuffled(range(len(self.rows)))
        if facts.config.training.packing:
            packed = self.shuffled(pack_rows(order, self.lengths, MAX_LENGTH))
            rows = [[self.rows[row] for row in sequence] for sequence in packed]
        else:
            if facts.model.grouped:
                order = self.grouped(order)
            rows = [self.rows[row] for row in order]
        for start in range(0, len(rows), BATCH):
            yield rows[start : start + BATCH]


def collate(rows: list[Any]) -> dict[str, Any]:
    """Return a batch, padded at the end; padding is neither seen nor trained."""
    if facts.config.training.packing:
        longest = max(sum(len(row["input_ids"]) for row in sequence) for sequence in rows)
        ids, positions, labels = [], [], []
        for sequence in rows:
            missing = longest - sum(len(row["input_ids"]) for row in sequence)
            ids.append([token for row in sequence for token in row["input_ids"]] + [0] * missing)
            # Positions start again with each row, by which transformers keeps rows apart.
            positions.append(
                [place for row in sequence for place in range(len(row["input_ids"]))] + list(range(missing))
            )
            # A row's first token is not predicted from the end of the row before.
            labels.append([label for row in sequence for label in (-100, *row["labels"][1:])] + [-100] * missing)
        return {
            "input_ids": torch.tensor(ids),
            "position_ids": torch.tensor(positions),
            "labels": torch.tensor(labels),
        }
    if facts.config.adapter.traits.virtual_tokens == "inputs":
        # A row's first token is not predicted from the virtual tokens before it.
        rows = [{**row, "labels": [-100, *row["labels"][1:]]} for row in rows]
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([filled(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([filled([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([filled(row["labels"], -100) for row in rows]),
    }


class Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the run's order of rows and its evaluation."""

    def get_train_dataloader(self) -> Any:
        batches = Batches(
            list(self.train_dataset), lambda: self.state.global_step // math.ceil(len(batches) / ACCUMULATE)
        )
        return DataLoader(batches, batch_size=None, collate_fn=collate)

    if facts.config.adapter.traits.regularized:

        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            """Return TRL's loss with the regularizer, which is added once to each optimizer step."""
            loss = super().compute_loss(model, *args, **kwargs)
            return loss + orthogonality(model) / self.current_gradient_accumulation_steps

    if facts.measures:

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            """Log and return the mean loss over the trained tokens of the held-out rows, in nats."""
            self.model.eval()
            if facts.config.model.quantization == "int8":
                for module in self.model.modules():
                    if type(module).__name__ == "Linear8bitLt" and not hasattr(module, "lora_A"):
                        module.train()  # else its inputs would be rounded as well, as they are not in training
            if facts.measures_base_first and self.state.global_step == 0:
                with self.model.disable_adapter():
                    metrics = {"eval_loss": self.held_out_loss()}
            else:
                metrics = {"eval_loss": self.held_out_loss()}
            self.model.train()
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
            return metrics

        def held_out_loss(self) -> float:
            """Return the mean loss without changing anything."""
            summed, tokens = 0.0, 0
            rows = sorted(self.eval_dataset, key=lambda row: -len(row["input_ids"]))
            with torch.no_grad(), self.compute_loss_context_manager():
                for start in range(0, len(rows), BATCH):
                    if facts.config.training.packing:
                        batch = collate([[row] for row in rows[start : start + BATCH]])
                    else:
                        batch = collate(rows[start : start + BATCH])
                    batch = {name: values.to(self.args.device) for name, values in batch.items()}
                    labels = batch.pop("labels")[:, 1:].flatten()
                    length = batch["input_ids"].shape[1]  # without virtual tokens
                    logits = self.model(**batch).logits[:, -length:-1].flatten(0, 1)
                    trained = labels != -100
                    summed += cross_entropy(logits[trained].float(), labels[trained], reduction="sum").item()
                    tokens += int(trained.sum())
            return summed / tokens


def prepare(tokenizer: Any, options: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Return the sequences to train on, and those that are held out."""
    if not facts.data.has_turns:
        kept = [(row, encode_row(row, tokenizer)) for row in load_rows(options.data)]
    else:
        kept, refused = [], []
        for row in load_rows(options.data):
            try:
                kept.append((row, encode_row(row, tokenizer)))
            except RefusedRowError as reason:
                refused.append(reason)
        if refused:
            print(f"{len(refused)} rows are left out; of the first, {refused[0]}")
    # Sequences whose trained part lies beyond MAX_LENGTH train nothing.
    trained = [(row, [one for one in found if any(label != -100 for label in one["labels"])]) for row, found in kept]
    kept = [(row, found) for row, found in trained if found]
    if not kept:
        raise SystemExit("No row has tokens to train on. Raise MAX_LENGTH, or name other rows with --data.")
    sample = kept
    if facts.config.dataset.max_samples and len(kept) > MAX_SAMPLES:
        drawn = np.random.default_rng([SEED, 0]).choice(len(kept), size=MAX_SAMPLES, replace=False)
        sample = [kept[row] for row in np.sort(drawn)]
    if facts.measures:
        apart = held_out([row for row, _ in sample])
        train = [one for (_, found), out in zip(sample, apart, strict=True) if not out for one in found]
        evaluation = [one for (_, found), out in zip(sample, apart, strict=True) if out for one in found]
    else:
        train, evaluation = [one for _, found in sample for one in found], []
    if facts.run_rows.sequences is not None and (options.model, options.data) == (MODEL, DATA):
        require_rows_of_run(kept, train, evaluation)
    return train, evaluation


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
        tokens = sum(len(row["input_ids"]) for row in train)
        if facts.config.training.max_steps > 0:
            epochs = facts.config.training.max_steps / math.ceil(len(Batches(train, lambda: 0)) / ACCUMULATE)
        else:
            epochs = facts.config.training.num_train_epochs
        chosen = choose_measured([len(row["input_ids"]) for row in evaluation], int(tokens * epochs), SEED)
        evaluation = [evaluation[row] for row in chosen]

    torch.manual_seed(SEED)  # the adapter starts from random numbers
    random.seed(SEED)
    model = load_model(options.model)
    if facts.quantized:
        trained = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    arguments = SFTConfig(
        output_dir=options.output,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        seed=SEED,
        **facts.trainer_arguments,
        max_length=None,  # rows are tokenized and truncated already
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    callbacks = facts.method_callbacks
    if facts.patience is not None:
        callbacks = [*callbacks, EarlyStoppingCallback(facts.patience)]
    trainer = Trainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        data_collator=collate,
        train_dataset=Dataset.from_list(train),
        **({"eval_dataset": Dataset.from_list(evaluation)} if facts.measures else {}),
        callbacks=callbacks,
    )
    if facts.quantized:
        for name, parameter in trainer.model.named_parameters():
            if name in trained:
                parameter.data = trained[name]  # TRL rounds them to bfloat16 where the base is quantized
    trainer.train()
    if facts.measures and trainer.state.global_step % trainer.state.eval_steps:
        trainer.evaluate()

    if facts.saved_dtype is not None:
        trainer.model.to(getattr(torch, facts.saved_dtype))
    trainer.model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    Path(options.output, "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=1))
