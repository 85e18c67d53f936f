"""Two processes train a few steps on a model that they share: writes what each held at most, in bytes of tensors.

Started by `tests.training.forked_ranks` as `-m tests.training.sharded_ranks MODEL FOLDER METHOD ...`.
"""

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loratory.engine.config.run import RunConfig
from loratory.engine.training.placement import Placement, ProcessGroup
from tests.training.tiny_training import CPU, Row, make_config, make_training

LENGTH = 48
ROWS = [Row(ids, ids) for ids in ([(7 * row + position) % 240 + 10 for position in range(LENGTH)] for row in range(4))]


def config_of(model: str, method: str, dtype: str = "bfloat16") -> RunConfig:
    """One row of one length in each pass."""
    training = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "max_length": LENGTH,
    }
    run = {"devices": "cpu", "launcher": "accelerate", "fsdp": "full_shard"}
    return make_config(
        Path(model), model={"compute_dtype": dtype}, adapter={"method": method}, training=training, run=run
    )


class HeldBytes(TorchDispatchMode):
    """The most bytes that all storages had together after any operation; FSDP frees storages by making them empty."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                storage = (leaf.to_local() if isinstance(leaf, DTensor) else leaf).untyped_storage()
                self._alive[storage._cdata] = weakref.ref(storage)
        alive = {key: storage for key, reference in self._alive.items() if (storage := reference()) is not None}
        self._alive = {key: self._alive[key] for key in alive}
        self.most = max(self.most, sum(storage.nbytes() for storage in alive.values()))
        return result


def main(model: str, folder: str, *methods: str) -> None:
    group = ProcessGroup.from_environment()
    torch.set_num_threads(1)
    placement = Placement(CPU, torch.device("cpu"), group, sharded=True)
    memory = {method: _most_held(config_of(model, method), Path(folder), placement) for method in methods}
    (Path(folder) / f"rank-{group.rank}.json").write_text(json.dumps(memory))


def _most_held(config: RunConfig, folder: Path, placement: Placement) -> int:
    training = make_training(config, ROWS, folder, placement=placement)
    watch = HeldBytes()
    with watch:
        training.trainer.train()
    return watch.most


if __name__ == "__main__":
    main(*sys.argv[1:])
