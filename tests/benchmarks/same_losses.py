"""Losses of a run with each optimization of a GPU, and with all, against the run without any: on a processor, by stand-ins.

    python -m tests.benchmarks.same_losses [steps]

Kernels are replaced by PyTorch's operations with the same signature (`tests.training.gpu_stand_ins`); that the kernels
give what these give is tested elsewhere. Prints the largest difference of a step's loss, relative to it, and exits with 1
where one is more than 0.1%.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from loratory.engine.config.optimizations import TRAINING_OPTIMIZATIONS, VARIABLE
from tests.tiny_model import make_tiny_model
from tests.training.gpu_stand_ins import use_gpu_paths
from tests.training.tiny_training import make_config, make_rows, make_training

TOLERANCE = 1e-3
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "LoRA": {"adapter": {"method": "lora"}},
    "QLoRA": {"adapter": {"method": "lora"}, "model": {"quantization": "nf4"}},
    "IA3": {"adapter": {"method": "ia3"}},
    "full": {"adapter": {"method": "none"}, "training": {"learning_rate": 1e-3}},
}


@contextmanager
def _without(names: list[str], *, joins: bool) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_gpu_paths(patch, joins=joins)
        patch.setenv(VARIABLE, ",".join(names))
        yield


def losses(folder: Path, method: str, steps: int, left_out: list[str], *, joins: bool = True) -> list[float]:
    """Train on rows of many lengths; `joins` as a GPU since Ampere does."""
    sections: dict[str, dict[str, Any]] = {name: dict(section) for name, section in METHODS[method].items()}
    sections["training"] = {"max_steps": steps, "max_length": 200, **sections.get("training", {})}
    with _without(left_out, joins=joins), tempfile.TemporaryDirectory() as out:
        training = make_training(make_config(folder, **sections), make_rows(40, longest=150), Path(out))
        for name in ("fused_loss", "fused_norms", "varlen_attention" if joins else "unmasked_rows"):
            assert (training.assembly.optimizations[name] == "") is (name not in left_out), name
        training.trainer.train()
        return training.losses


def difference(got: list[float], expected: list[float]) -> float:
    """Return the largest difference of a step's loss, relative to it."""
    assert len(got) == len(expected)
    return max(abs(own - other) / other for own, other in zip(got, expected, strict=True))


def main() -> int:
    steps, names, worst = int(sys.argv[1]) if len(sys.argv) > 1 else 50, list(TRAINING_OPTIMIZATIONS), 0.0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        folder = make_tiny_model(Path(root) / "model", model_type="qwen3")
        for method in METHODS:
            # Without joining, the rows of a step are others: each way has a reference of its own.
            for joins in (True, False):
                reference = losses(folder, method, steps, names, joins=joins)
                for used in [*([name] for name in names), names]:
                    left_out = [name for name in names if name not in used]
                    result = difference(losses(folder, method, steps, left_out, joins=joins), reference)
                    worst = max(worst, result)
                    label = used[0] if len(used) == 1 else "all"
                    print(f"{method:6} {'joined' if joins else 'padded':7} {label:18} {100 * result:.4f}%", flush=True)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
