"""The worker as one of several processes that differ: one alone meets the fault that the environment asks for, and only the
first may read the content of a checkpoint to verify it.

Started by `tests.training.forked_ranks` as `-m tests.training.faulty_rank RUN_DIR`; `LORATORY_TEST_RANK` shows which one.
"""

import os
import sys
from pathlib import Path

from loratory.engine.runs import checkpoints
from loratory.engine.training.faults import VARIABLE
from loratory.engine.training.worker import main


def refuse(path: Path) -> str:
    raise AssertionError(f"a process that is not the first hashes {path.name}")


if __name__ == "__main__":
    if os.environ["RANK"] != os.environ.get("LORATORY_TEST_RANK"):
        os.environ.pop(VARIABLE, None)
    if os.environ["RANK"] != "0":
        vars(checkpoints)["sha256_of"] = refuse
    sys.exit(main(sys.argv[1:]))
