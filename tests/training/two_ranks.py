"""Two processes learn a few rows, one of which has nothing to learn: writes what each of them has then.

Started by `tests.training.forked_ranks` as `-m tests.training.two_ranks MODEL FOLDER HEAD ROWS`.
"""

import json
import sys
from pathlib import Path

import torch

from engine.training.placement import Placement, ProcessGroup
from tests.training.tiny_training import CPU, Row, make_config, make_training

ROWS = [
    Row([11, 12, 13, 14, 15, 16], [-100, -100, 13, 14, 15, 16]),
    Row([21, 22, 23, 24], [21, -100, -100, -100]),
    Row([31, 32, 33], [-100, 32, 33]),
]
EPOCHS = 6  # in some of them the first process has nothing to learn, in others the second


def main(model: str, folder: str, head: str, rows: str) -> None:
    group = ProcessGroup.from_environment()
    torch.set_num_threads(1)
    one_row = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_train_epochs": EPOCHS}
    adapter = {"method": "none"} if head == "trained" else {}
    config = make_config(Path(model), adapter=adapter, training=one_row)
    placement = Placement(CPU, torch.device("cpu"), group)
    training = make_training(config, ROWS[: int(rows)], Path(folder), placement=placement)
    training.trainer.train()
    recorded = [training.trainer.progress.tokens, training.trainer.progress.trained_tokens]
    weights = sum(float(weights.double().abs().sum()) for weights in training.weights().values())
    (Path(folder) / f"rank-{group.rank}.json").write_text(json.dumps([training.losses, weights, recorded]))


if __name__ == "__main__":
    main(*sys.argv[1:])
