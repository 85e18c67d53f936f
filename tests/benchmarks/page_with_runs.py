"""The page on fakes with 40 invented runs, for `page_tasks`; started by the Python of the checkout that is measured.

Prints its address and the two best runs in a line of JSON, and ends with its input.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}

from loratory.engine.runs.store import RunStore
from tests.browser.show_fake import page_of
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run


def main() -> None:
    """Serve until the input ends."""
    with tempfile.TemporaryDirectory(prefix="loratory-benchmark-", ignore_cleanup_errors=True) as folder:
        services = fake_services(Path(folder), seconds_per_step=0.01)
        runs = {}
        for number in range(40):
            rank, age_seconds = (17 * number + 11) % 40, 3600.0 * (40 - number)  # rank by held-out loss
            moment, name = time.time() - age_seconds, f"trial {number:02d}"
            past = RunStore(services.home, services.runs.owner, clock=lambda moment=moment: moment)  # type: ignore[misc]
            config = a_config(
                run__name=name, adapter__r=2 ** (2 + number % 4), training__learning_rate=1e-4 + number * 1e-5
            )
            story = InventedRun(steps=40, total_steps=40, floor=1 + rank / 50, seed=number, age_seconds=age_seconds)
            runs[rank] = {"id": write_run(past, config, story).id, "name": name}
        with page_of(services) as address:
            print(json.dumps({"address": address.rstrip("/"), "runs": [runs[0], runs[1]]}), flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
