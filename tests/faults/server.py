"""A Loratory server without a page, for tests that kill it: supervises the home of $LORATORY_HOME with fake workers."""

import sys
import time

from engine.paths import LoratoryHome
from engine.runs.supervision.supervisor import Supervisor
from tests.runs.supervision import fake_settings

if __name__ == "__main__":
    supervisor = Supervisor(LoratoryHome.from_environment(), fake_settings())
    print(supervisor.start(), flush=True)
    while sys.stdin.readable():
        time.sleep(3600)
