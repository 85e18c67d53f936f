"""The worker as one of several processes, of which only the first may read the content of a checkpoint to verify it.

Started by `tests.training.forked_ranks` as `-m tests.training.blind_rank RUN_DIR`.
"""

import os
import sys
from pathlib import Path

from engine.runs import checkpoints
from engine.training.worker import main


def refuse(path: Path) -> str:
    raise AssertionError(f"a process that is not the first hashes {path.name}")


if __name__ == "__main__":
    if os.environ["RANK"] != "0":
        vars(checkpoints)["sha256_of"] = refuse
    sys.exit(main(sys.argv[1:]))
