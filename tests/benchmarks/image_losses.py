"""Losses of 20 steps on rows with images, ours against plain TRL's: `python -m tests.benchmarks.image_losses [steps]`.

For each family, LoRA in float32 on the same rows in the same order: TRL's SFTTrainer with its vision collator and transformers'
own processor. Prints the largest difference of a step's loss, relative to it, and steps a second of both; exits with 1 where one
differs by more than 1e-4. Token labels are TRL's, which also trains white space after the end of a turn.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.tiny_vision import MEMBERS, VisionMember
from tests.training.image_training import (
    make_vision_rows,
    plain_copy,
    rows_of_steps,
    trl_losses,
    vision_config,
    vision_training,
)

TOLERANCE = 1e-4
_RATE = 1e-3


def compare(member: VisionMember, steps: int, root: Path) -> float:
    """Train both ways; return the largest difference of a step's loss, relative to it."""
    data = make_vision_rows(root, member, count=4 * steps)
    training = {"max_steps": steps, "learning_rate": _RATE, "lr_scheduler_type": "constant", "warmup_steps": 0}
    ours = vision_training(data, vision_config(data, training=training), root / "ours")
    model = plain_copy(ours)
    began = time.perf_counter()
    ours.trainer.train()
    between = time.perf_counter()
    theirs = trl_losses(data, model, rows_of_steps(ours)[:steps], root / "trl", _RATE)
    own, other = between - began, time.perf_counter() - between
    worst = max(abs(a - b) / b for a, b in zip(ours.losses, theirs, strict=True))
    first, last = ours.losses[0], ours.losses[-1]
    print(
        f"{member.model_type:16} {first:.4f} → {last:.4f}  {worst:.1e}  {steps / own:5.1f} {steps / other:5.1f}",
        flush=True,
    )
    return worst


def main() -> int:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    torch.set_num_threads(1)
    print("family           loss             differs   steps a second: ours, TRL's with its start")
    with tempfile.TemporaryDirectory() as root:
        return int(max(compare(member, steps, Path(root)) for member in MEMBERS) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
