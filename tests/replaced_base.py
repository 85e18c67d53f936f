"""A run that recorded its base, whose weights then change."""

import os
from pathlib import Path

from loratory.engine.models.fingerprint import BackgroundHash, list_weights
from loratory.engine.runs.history.events import BaseWeightsData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.run import RunFolder


def record_base(run: Path, base: Path) -> None:
    """Write into the log of a run what its worker reports."""
    hashes = BackgroundHash(list_weights(base, base.name), base, run.parent / "cache")
    hashes.run()
    with EventWriter(RunFolder(run).events, 1) as writer:
        writer.append(BaseWeightsData(files=hashes.files))


def scale_a_tensor(base: Path) -> None:
    """Replace the weights by others of the same size."""
    from safetensors.torch import load_file, save_file

    file = base / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if "down_proj" in name)
    save_file({**weights, name: weights[name] * 1.5}, file, metadata={"format": "pt"})


def touch(base: Path) -> None:
    """Change the time of the weights alone."""
    os.utime(base / "model.safetensors", ns=(0, 1_700_000_000_123_456_789))
