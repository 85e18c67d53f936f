"""One of the processes of a launch: notes where it meets the others, while another launch is under way.

Started by a launcher as `-m tests.training.meeting_ranks FOLDER`: both launches write into one parent folder, and each
ends only when both have begun. That processes which meet add up their gradients is shown by those that really train.
"""

import os
import socket
import sys
import time
from pathlib import Path

LAUNCHES = 2
SECONDS = 1500.0  # ends launches that wait for each other


def main(folder: Path) -> None:
    (folder / f"began-{os.environ['RANK']}").touch()
    deadline = time.monotonic() + SECONDS
    while len(list(folder.parent.glob("*/began-0"))) < LAUNCHES:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    endpoint = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    socket.create_connection(endpoint, SECONDS).close()  # their launcher listens there
    (folder / f"met-{os.environ['RANK']}").write_text(str(endpoint))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
