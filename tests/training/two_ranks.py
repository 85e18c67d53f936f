"""Two processes train on a few rows, one of which has no trained token: writes their losses, counts and reads.

Started by `tests.training.forked_ranks` as `-m tests.training.two_ranks MODEL FOLDER HEAD ROWS`.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from loratory.engine.config.run import RunConfig
from loratory.engine.training.callbacks import TrainerHooks
from loratory.engine.training.placement import Placement, ProcessGroup
from tests.training.tensor_reads import Reads, WithinSteps
from tests.training.tiny_training import CPU, Row, make_config, make_training, train_tiny

ROWS = [
    Row([11, 12, 13, 14, 15, 16], [-100, -100, 13, 14, 15, 16]),
    Row([21, 22, 23, 24], [21, -100, -100, -100]),
    Row([31, 32, 33], [-100, 32, 33]),
]
EPOCHS = 6  # in some of them the first process has no trained token, in others the second


def main(model: str, folder: str, head: str, rows: str) -> None:
    group = ProcessGroup.from_environment()
    torch.set_num_threads(1)
    one_row = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_train_epochs": EPOCHS}
    adapter = {"method": "none"} if head == "trained" else {}
    config = make_config(Path(model), adapter=adapter, training=one_row)
    placement = Placement(CPU, torch.device("cpu"), group)
    training = train_tiny(config, ROWS[: int(rows)], Path(folder), placement=placement)
    records = [training.trainer.progress.tokens, training.trainer.progress.trained_tokens]
    weights = sum(float(weights.double().abs().sum()) for weights in training.weights().values())
    quiet = train_without_logs(config, Path(folder), placement)
    (Path(folder) / f"rank-{group.rank}.json").write_text(json.dumps([training.losses, weights, records, *quiet]))


def train_without_logs(config: RunConfig, folder: Path, placement: Placement) -> tuple[list[str], list[bool]]:
    """Train five steps of which the first and the last are logged; the second process wants to stop from the third on.

    Returns:
        What was read of tensors in the steps between, and after which steps this process knew of the wish to stop.
    """
    reads, stop_votes = Reads(), []

    class Votes(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args, state, control, **_):
            stop_votes.append(training.trainer.stop_voted())

    settings = config.training.model_copy(update={"num_train_epochs": 1, "max_steps": 5, "logging_steps": 100})
    hooks = TrainerHooks(stop_wanted=lambda: placement.group.rank == 1 and training.trainer.state.global_step >= 2)
    training = make_training(
        config.model_copy(update={"training": settings}),
        ROWS[:2],
        folder,
        hooks=hooks,
        callbacks=(Votes(), WithinSteps(reads, 5)),
        placement=placement,
    )
    with reads:
        training.trainer.train()
    return [str(name) for name in reads.calls], stop_votes


if __name__ == "__main__":
    main(*sys.argv[1:])
