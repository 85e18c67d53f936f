"""`app.py`, whose workers are forked: run by `tests.browser.real_server`."""

import sys

from loratory.app import main
from tests.fork_server import forking_workers

if __name__ == "__main__":
    with forking_workers(one_test=None):  # its stand-in is there for many workers
        code = main()
    sys.exit(code)
