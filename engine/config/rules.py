"""What follows from settings and the kind of device: one rule each for trainer, memory estimate and exported script.

Whether rows are joined or padded depends on the model too; that rule is in `loratory.engine.models.batching`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from loratory.engine.config.run import ComputeDtype
from loratory.engine.config.training import Optimizer, TrainingConfig

DtypeName = Literal["bfloat16", "float16", "float32"]

# Bytes of one chunk's logits in float32. On a CPU they should not be much wider than its caches.
LOSS_CHUNK_BYTES_CPU = 48 * 2**20
LOSS_CHUNK_BYTES = 256 * 2**20

# Joined tokens are filled up to a multiple of this. A CPU's matrix library compiles a kernel for every new size, which
# costs more than a few tokens.
JOINED_MULTIPLE = 16

# Queries at once in our attention on a CPU. A tile of scores in float32 stays in the processor's cache; smaller ones lose
# time between products.
QUERY_TILE = 128

# Keys and values of answers that are written side by side, at 32 bits. Fixed numbers: a resumed run repeats its batches.
ANSWER_CACHE_BYTES = {"cpu": 2 << 30, "cuda": 8 << 30}
# Weights of a model on a processor that are copied while it answers, in the order of its kernels.
COPIED_WEIGHT_BYTES = 4 << 30

MEASUREMENTS = 10  # during a run, where the setting is empty
CHECKPOINTS = 5
MIN_LEARNING_RATE_SHARE = 0.1  # of the first learning rate, where a cosine_with_min_lr schedule ends


def choose_compute_dtype(setting: ComputeDtype, device_kind: str, *, has_fast_bfloat16: bool) -> DtypeName:
    """Return the precision of matrix products: `auto` is bfloat16 where the device multiplies it faster.

    Otherwise NVIDIA's GPUs take float16, which tensor cores have had for longest; CPUs and Apple's GPU take float32, which
    they are built for. An instruction for bfloat16 is not enough: two cores of a fifth generation Xeon without AMX reached
    0.16 TFLOP/s in it and 0.26 in float32.
    """
    if setting != "auto":
        return setting
    if has_fast_bfloat16:
        return "bfloat16"
    return "float16" if device_kind == "cuda" else "float32"


def optimizer_name(optim: Optimizer, device_kind: str) -> Optimizer:
    """Return the optimizer's name in transformers.

    AdamW's fused kernel does what the plain one does: on a CPU in a third of the time, on CUDA without its temporaries.
    """
    return "adamw_torch_fused" if optim == "adamw_torch" and device_kind in ("cpu", "cuda") else optim


def keeps_best(training: TrainingConfig) -> bool:
    """Return whether a run ends with the weights of its lowest held-out loss."""
    return training.load_best_model_at_end or training.early_stopping_patience is not None


def answer_tokens(training: TrainingConfig, parameters: int, device_kind: str) -> int:
    """Return the most tokens of an answer in an evaluation: by default none for models that would take a minute or more."""
    is_small = parameters <= (1e9 if device_kind == "cpu" else 4e9)
    return training.eval_max_new_tokens if training.eval_max_new_tokens is not None else 64 * is_small


def answers_at_once(elements: int, positions: int, device_kind: str) -> int:
    """Return how many answers are written side by side at most.

    Args:
        elements: Of keys and values that a position has in all layers.
        positions: Of the longest prompt with the longest answer.
    """
    return max(1, ANSWER_CACHE_BYTES.get(device_kind, ANSWER_CACHE_BYTES["cpu"]) // (4 * elements * positions))


@dataclass(frozen=True)
class Cadence:
    """At which steps of a run its held-out loss is measured and a checkpoint is written."""

    total_steps: int
    eval_steps: int | None  # None: there are no held-out rows
    save_steps: int

    @classmethod
    def from_settings(cls, training: TrainingConfig, total_steps: int, *, measures: bool) -> "Cadence":
        """Fill in the intervals that the settings leave empty; `measures` where there are held-out rows.

        Each checkpoint then has a held-out loss to compare it by.
        """
        eval_steps = training.eval_steps or max(1, math.ceil(total_steps / MEASUREMENTS))
        save_steps = max(1, math.ceil(total_steps / CHECKPOINTS))
        if measures:  # what is saved has been measured
            save_steps = eval_steps * math.ceil(save_steps / eval_steps)
        return cls(total_steps, eval_steps if measures else None, training.save_steps or save_steps)

    def measures_at(self, step: int) -> bool:
        """Return whether the held-out loss is measured after this step; always after the last."""
        return self.eval_steps is not None and (step % self.eval_steps == 0 or step >= self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Return whether a checkpoint is written after this step; always after the last."""
        return step % self.save_steps == 0 or step >= self.total_steps
