"""One of the processes of a launch: adds its number to those of the others while another launch is under way.

Started by a launcher as `-m tests.training.meeting_ranks FOLDER`: both launches write into one parent folder, and each
meets only when both have begun.
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed

LAUNCHES = 2
SECONDS = 1500.0  # ends launches that wait for each other


def main(folder: Path) -> None:
    (folder / f"began-{os.environ['RANK']}").touch()
    deadline = time.monotonic() + SECONDS
    while len(list(folder.parent.glob("*/began-0"))) < LAUNCHES:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    distributed.init_process_group("gloo")
    numbers = torch.tensor(1 + distributed.get_rank())
    distributed.all_reduce(numbers)
    (folder / f"sum-{distributed.get_rank()}").write_text(f"{int(numbers)} {os.environ['MASTER_PORT']}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
