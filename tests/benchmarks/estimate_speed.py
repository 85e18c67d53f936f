"""How long an estimate, the advice and the table of methods take: `python -m tests.benchmarks.estimate_speed`.

For models from 135M to 70B and for every kind of adapter, with the inventory at hand as the page has it. Prints the median of
many, in milliseconds of processor time; the page promises an estimate within 10 and the advice within 100.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.run import RunConfig
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.advice import advise
from loratory.engine.memory.compare import compare_methods
from loratory.engine.memory.estimate import estimate_memory
from loratory.engine.models.catalog import find_in_catalog

GIB = 2**30
MODELS = (
    "smollm2-135m-instruct",
    "Qwen/Qwen3-4B",
    "meta-llama/Llama-2-7b-hf",
    "Qwen/Qwen3-30B-A3B",
    "meta-llama/Llama-3.1-70B-Instruct",
)
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "LoRA": {},
    "QLoRA, checkpointed": {"model": {"quantization": "nf4"}, "training": {"gradient_checkpointing": True}},
    "full": {"adapter": {"method": "none"}},
    "LoRA, 8 rows of 8,192": {"training": {"per_device_train_batch_size": 8, "max_length": 8192}},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=15)
    repeat = parser.parse_args().repeat
    device = Device("cuda", 0, "a GPU with 24 GiB", 24 * GIB, 22 * GIB, has_fast_bfloat16=True)
    print(f"{'model':<30}{'settings':<24}{'estimate':>10}{'advice':>10}{'methods':>10}   ms, median of {repeat}")
    worst = [0.0, 0.0, 0.0]
    for name in MODELS:
        entry = find_in_catalog(name)
        assert entry is not None, f"{name} is in the catalogue no more"
        shape = inventory_of(entry.config)
        for settings, sections in SETTINGS.items():
            config = _config(name, sections)
            actions = (estimate_memory, advise, compare_methods)
            times = [_median(partial(action, shape, config, device), repeat) for action in actions]
            worst = [max(pair) for pair in zip(worst, times, strict=True)]
            print(f"{name:<30}{settings:<24}" + "".join(f"{value:>10.1f}" for value in times), flush=True)
    print(f"{'the slowest':<54}" + "".join(f"{value:>10.1f}" for value in worst))


def _config(model: str, sections: dict[str, dict[str, Any]]) -> RunConfig:
    mapping: dict[str, dict[str, Any]] = {"model": {"id": model}, "dataset": {"source": "-"}}
    for section, fields in sections.items():
        mapping[section] = {**mapping.get(section, {}), **fields}
    return config_from_mapping(mapping)


def _median(action: Callable[[], object], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        began = time.process_time()
        action()
        times.append(1000 * (time.process_time() - began))
    return statistics.median(times)


if __name__ == "__main__":
    main()
