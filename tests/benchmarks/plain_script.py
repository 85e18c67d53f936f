"""The script that a person would otherwise write: TRL's trainer as its documentation uses it, on the rows that we learn.

`documented` names the model and leaves everything open that TRL has a default for: weights in float32 under bfloat16
autocast, eight rows a pass, gradient checkpointing. `tuned` is what an expert on this processor makes of it: weights
loaded in what it multiplies faster, activations kept, small passes. Both get rows that are tokenized already, and no time
for that.
"""

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.step_plan import EpochPlanner, PlanSettings
from tests.benchmarks.training_trial import (
    ALPHA,
    LEARNING_RATE,
    RANK,
    WARM_UP_STEPS,
    Clock,
    Recipe,
    Trial,
    config_for,
    prepare,
)


def rows_in_order(data: Any, recipe: Recipe) -> list[int]:
    """Return the numbers of the rows in the order in which our trainer learns them."""
    training = TrainingConfig(
        seed=42,
        per_device_train_batch_size=recipe.rows_per_pass,
        gradient_accumulation_steps=recipe.accumulate,
        max_length=recipe.max_length,
    )
    settings = PlanSettings(training, "joined")
    planner = EpochPlanner(data.train.lengths(), settings)
    expected = recipe.steps * recipe.rows_per_step
    order: list[int] = []
    epoch = 0
    while len(order) < expected:
        for step in planner.steps(epoch):
            rows = [row for batch in step.passes for row in batch.rows]
            if len(rows) == recipe.rows_per_step:  # a short last step would shift all later ones
                order.extend(rows)
        epoch += 1
    return order[:expected]


def train_plain(recipe: Recipe) -> Trial:
    """Train as the recipe's plain script does."""
    config = config_for(recipe)
    source, tokenizer, data = prepare(config)
    rows = [data.train[index] for index in rows_in_order(data, recipe)]
    trained = [sum(label != -100 for label in row.labels[1:]) for row in rows]
    clock = Clock()
    losses: list[float] = []
    held_out: dict[str, float] = {}

    class Plain(SFTTrainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            if "loss" not in logs:
                return
            losses.append(logs["loss"])
            if len(losses) == WARM_UP_STEPS:
                clock.start()
            if len(losses) in recipe.measured_at:
                held_out[str(len(losses))] = clock.without(
                    lambda: held_out_loss(self.model, data.held_out, computes_in_bfloat16)
                )

    is_documented = recipe.plain == "documented"
    computes_in_bfloat16 = is_documented or recipe.plain_dtype == "bfloat16"
    torch.manual_seed(42)
    trainer = Plain(
        model=source.location
        if is_documented
        else AutoModelForCausalLM.from_pretrained(source.location, dtype=getattr(torch, recipe.plain_dtype)),
        args=SFTConfig(**_arguments(recipe), shuffle_dataset=False),
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
        processing_class=tokenizer,
        peft_config=_adapter(recipe),
    )
    trainer.train()
    seconds, cpu_seconds = clock.read()
    first = WARM_UP_STEPS * recipe.rows_per_step
    tokens = sum(len(row.input_ids) for row in rows[first:])
    return Trial(seconds, cpu_seconds, sum(trained[first:]), tokens, losses, held_out)


def train_plain_on_pairs(recipe: Recipe) -> Trial:
    """Train on pairs of answers as TRL's documentation of DPO does, tuned for this processor."""
    source, tokenizer, data = prepare(config_for(recipe))
    pairs = [data.train[index] for index in rows_in_order(data, recipe)]
    clock = Clock()
    losses: list[float] = []

    class Plain(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # tokenized already

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log(logs, start_time)
            if "loss" in logs:
                losses.append(logs["loss"])
                if len(losses) == WARM_UP_STEPS:
                    clock.start()

    torch.manual_seed(42)
    trainer = Plain(
        model=AutoModelForCausalLM.from_pretrained(source.location, dtype=getattr(torch, recipe.plain_dtype)),
        args=DPOConfig(**_arguments(recipe)),
        train_dataset=Dataset.from_list([_as_trl(pair) for pair in pairs]),
        processing_class=tokenizer,
        peft_config=_adapter(recipe),
    )
    trainer.train()
    seconds, cpu_seconds = clock.read()
    timed_pairs = pairs[WARM_UP_STEPS * recipe.rows_per_step :]
    answers = [answer for pair in timed_pairs for answer in (pair, pair.rejected)]
    trained = sum(label != -100 for answer in answers for label in answer.labels[1:])
    return Trial(seconds, cpu_seconds, trained, sum(len(answer.input_ids) for answer in answers), losses)


def _as_trl(pair: Any) -> dict[str, list[int]]:
    start = next(index for index, label in enumerate(pair.labels) if label != -100)
    ids, others = pair.input_ids, pair.rejected.input_ids
    return {"prompt_ids": ids[:start], "chosen_ids": ids[start:], "rejected_ids": others[start:]}


def _arguments(recipe: Recipe) -> dict[str, Any]:
    is_documented = recipe.plain == "documented"
    return {
        "output_dir": "/dev/shm/train-speed-plain",
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.rows_per_step if is_documented else recipe.rows_per_pass,
        "gradient_accumulation_steps": 1 if is_documented else recipe.accumulate,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": is_documented or recipe.plain_dtype == "bfloat16",
        "activation_checkpointing": is_documented,
        "max_length": recipe.max_length,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "seed": 42,
    }


def _adapter(recipe: Recipe) -> LoraConfig:
    return LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=recipe.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def held_out_loss(model: Any, rows: Any, computes_in_bfloat16: bool) -> float:
    """Mean loss over the learned tokens of the held-out rows, by transformers' own loss, row by row."""
    was_training = model.training
    model.eval()
    total = tokens = 0.0
    for row in rows:
        labels = torch.tensor([row.labels])
        count = int((labels[:, 1:] != -100).sum())
        if count:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bfloat16):
                total += float(model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss) * count
            tokens += count
    model.train(was_training)
    return total / tokens
