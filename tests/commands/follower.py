"""`loratory train` behind its checks, for tests that kill or interrupt it: follows the run argv[1] with fake workers."""

import sys

from loratory.engine.commands.output import ProgressLine
from loratory.engine.commands.train import follow_to_the_end, report
from loratory.engine.errors import EngineError
from loratory.engine.interface.workspace import Run
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.store import RunStore
from tests.supervision.fake_runs import fake_settings

if __name__ == "__main__":
    home = LoratoryHome.from_environment()
    run = RunStore(home, "ann").get(sys.argv[1])
    try:
        report(Run(home, run), follow_to_the_end(Run(home, run), ProgressLine(), fake_settings()), as_json=True)
    except EngineError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
