"""A process of its own that makes the demo model ready and prints each phase; for tests that end it half way.

Run as `python -m tests.models.demo_maker HOME [STEP]`: at the first thing told that begins with STEP, it waits for its end.
"""

import signal
import sys
from pathlib import Path

from loratory.engine.config.run import ModelConfig
from loratory.engine.models.prepared import ModelProgress
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome


def main() -> None:
    """Make it, saying phase and message of everything that is reported."""
    home = LoratoryHome(Path(sys.argv[1]))
    home.make_writable()

    def tell(progress: ModelProgress) -> None:
        line = f"{progress.phase} {progress.message}"
        print(line, flush=True)
        if sys.argv[2:] and line.startswith(sys.argv[2]):
            signal.pause()

    source = resolve_model(ModelConfig(id="smollm2-135m-instruct"), home, tell)
    print(f"ready {source.location}", flush=True)


if __name__ == "__main__":
    main()
