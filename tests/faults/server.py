"""A Loratory server without a page, for tests that kill it: supervises the home of $LORATORY_HOME with fake workers.

It waits for silent workers as long as a real one, until it reads a line; from then on, seconds.
"""

import sys

from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.activity import SilenceLimits
from loratory.engine.supervision.supervisor import Supervisor
from loratory.engine.supervision.worker_monitor import Timeouts
from tests.supervision.fake_runs import fake_settings

if __name__ == "__main__":
    silence = SilenceLimits()
    timeouts = Timeouts(silence=silence, claim_seconds=6.0)
    supervisor = Supervisor(LoratoryHome.from_environment(), fake_settings(timeouts=timeouts))
    print(supervisor.start(), flush=True)
    for _line in sys.stdin:
        object.__setattr__(silence, "idle_seconds", 3.0)
        object.__setattr__(silence, "suspended_seconds", 3.0)
