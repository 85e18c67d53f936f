"""A process of its own that makes a model folder slowly, for tests that end it half way.

Run as `python -m tests.models.interrupted_maker FOLDER`; it prints each step that it has begun.
"""

import sys
import time
from pathlib import Path

from loratory.engine.models.prepared import Recipe, prepare_once

RECIPE = Recipe(made_from="the test", needed_bytes=1)


def build(target: Path) -> None:
    """Write three files and a scrap, with time in between."""
    print("begun", flush=True)
    (target.parent / "scrap").write_bytes(b"x" * 1000)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        time.sleep(0.1)
        (target / name).write_text(name)
        print(name, flush=True)
    time.sleep(0.1)


def make(folder: Path) -> None:
    """Make it, and say what was told."""
    prepare_once(folder, RECIPE, build, lambda progress: print(progress.phase, flush=True))
    print("done", flush=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
