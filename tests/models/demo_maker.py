"""A process of its own that makes the demo model ready and prints each phase; for tests that end it half way.

Run as `python -m tests.models.demo_maker HOME`.
"""

import sys
from pathlib import Path

from engine.config.run import ModelConfig
from engine.models.source import resolve_model
from engine.paths import LoratoryHome


def main() -> None:
    """Make it, saying phase and message of everything that is told."""
    home = LoratoryHome(Path(sys.argv[1]))
    home.make_writable()
    source = resolve_model(
        ModelConfig(id="smollm2-135m-instruct"),
        home,
        lambda progress: print(f"{progress.phase} {progress.message}", flush=True),
    )
    print(f"ready {source.location}", flush=True)


if __name__ == "__main__":
    main()
