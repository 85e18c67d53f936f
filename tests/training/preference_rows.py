"""Pairs and rated answers of random tokens, and TRL's own trainers on the very same ones."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

from loratory.engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from tests.training.tiny_training import TinyTraining


def make_pairs(count: int, seed: int = 0) -> list[TokenizedRow]:
    """Pairs that share a prompt; the answers differ in length."""
    generator = random.Random(seed)
    pairs = []
    for row in range(count):
        prompt = _tokens(generator, 3, 12)
        sides = []
        for _ in range(2):
            answer = _tokens(generator, 2, 20)
            sides.append((prompt + answer, [IGNORED_LABEL] * len(prompt) + answer))
        pairs.append(TokenizedRow(row, 0, *sides[0], rejected=TokenizedRow(row, 1, *sides[1])))
    return pairs


def make_ratings(count: int, seed: int = 0) -> list[TokenizedRow]:
    """Answers, every other one a good one."""
    return [replace(pair, rejected=None, desirable=pair.row % 2 == 0) for pair in make_pairs(count, seed)]


def _tokens(generator: random.Random, fewest: int, most: int) -> list[int]:
    return [generator.randrange(10, 250) for _ in range(generator.randint(fewest, most))]


def split_row(row: TokenizedRow) -> tuple[list[int], list[int]]:
    """Return prompt and answer of a sequence."""
    start = next(index for index, label in enumerate(row.labels) if label != IGNORED_LABEL)
    return row.input_ids[:start], row.input_ids[start:]


def in_order(built: TinyTraining, rows: Sequence[Any]) -> list[Any]:
    """Return the rows as the steps of the first epoch have them."""
    return [rows[row] for step in built.trainer._planner.steps(0) for plan in step.passes for row in plan.rows]


class _Gradients(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.first: dict[str, Any] = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        if not self.first:
            self.first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train_with_trl(
    trainer: Any, config: Any, model: Any, rows: list[dict[str, Any]], folder: Path, **arguments: Any
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train a model on tokenized rows in their order; returns what was logged at each step, and the first gradients."""

    class Tokenized(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def tokenize_row(self, feature: Any, *_: Any, **__: Any) -> dict[str, Any]:  # of ORPO's trainer
            prompt = feature["prompt_ids"]
            row: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
            for side in ("chosen", "rejected"):
                answer = feature[f"{side}_ids"]
                row[f"{side}_input_ids"] = prompt + answer
                row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
                row[f"{side}_labels"] = [IGNORED_LABEL] * len(prompt) + answer
            return row

    gradients = _Gradients()
    args = config(
        output_dir=str(folder), report_to="none", logging_steps=1, use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential", max_length=64, num_train_epochs=1,
        gradient_accumulation_steps=1, remove_unused_columns=False, optim="adamw_torch_fused", **arguments,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    built = Tokenized(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[gradients]
    )
    built.train()
    return [entry for entry in built.state.log_history if "loss" in entry], gradients.first
