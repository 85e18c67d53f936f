"""The worker as one of several processes, of which one alone meets the fault that the environment asks for.

Started by `tests.training.forked_ranks` as `-m tests.training.faulty_rank RUN_DIR`; `LORATORY_TEST_RANK` shows which one.
"""

import os
import sys

from engine.training.faults import VARIABLE
from engine.training.worker import main

if __name__ == "__main__":
    if os.environ["RANK"] != os.environ["LORATORY_TEST_RANK"]:
        os.environ.pop(VARIABLE, None)
    sys.exit(main(sys.argv[1:]))
