"""Prompts that are answered, and a loop over them on the tiny model, in this process."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loratory.engine.data.render.tokenize import IGNORED_LABEL, PromptFacts, TokenizedRow
from loratory.engine.training.objectives.grpo import SampledAnswer
from tests.training.tiny_training import TinyTraining, make_config, make_training

GRPO = {
    "objective": "grpo",
    "rewards": [{"scorer": "regex", "pattern": "a"}],
    "num_generations": 4,
    "max_completion_length": 12,
    "beta": 0.0,
    "max_length": 32,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
}


def make_prompts(count: int, seed: int = 0) -> list[TokenizedRow]:
    """Prompts of random tokens."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        ids = [generator.randrange(10, 250) for _ in range(generator.randint(4, 14))]
        facts = PromptFacts(f"prompt {number}", {"answer": str(number)})
        rows.append(TokenizedRow(number, 0, ids, [IGNORED_LABEL] * len(ids), prompt=facts))
    return rows


def make_answers(prompts: Sequence[TokenizedRow], copies: int, seed: int = 0) -> list[SampledAnswer]:
    """Random answers with random advantages; log-probabilities at sampling are to be filled in."""
    generator = random.Random(seed)
    answers = []
    for prompt in prompts:
        for _ in range(copies):
            tokens = [generator.randrange(10, 250) for _ in range(generator.randint(1, 12))]
            ids = [*prompt.input_ids, *tokens]
            labels = [IGNORED_LABEL] * len(prompt.input_ids) + tokens
            answers.append(SampledAnswer(prompt.row, 0, ids, labels, advantage=generator.gauss(0, 1)))
    return answers


def make_rollouts(folder: Path, home: Path, rows: Sequence[TokenizedRow], **options: Any) -> TinyTraining:
    """Build a loop over prompts; `training` and `model` of the options are settings."""
    training = GRPO | options.pop("training", {})
    config = make_config(folder, training=training, model={"compute_dtype": "float32"} | options.pop("model", {}))
    return make_training(config, list(rows), home, **options)
