"""`python -m tests.browser.show_fake`: the whole page on invented runs, without torch; Ctrl+C ends it.

A folder's runs are invented again at each start: `--empty` shows the page as a new person sees it.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from loratory.ui.serve import launch
from loratory.ui.services import Services
from tests.fake_services import fake_services, invent_runs
from tests.invented_runs import a_config


@contextmanager
def page_of(services: Services, port: int | None = None) -> Iterator[str]:
    """Serve the page on `services`; gives its address."""
    app = launch(services, "127.0.0.1", port)
    try:
        yield app.local_url
    finally:
        app.close(verbose=False)


def main() -> None:
    """Serve until Ctrl+C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=None)
    parser.add_argument("--empty", action="store_true", help="no runs at all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loratory-fake-") as folder:
        services = fake_services(Path(folder))
        if not arguments.empty:
            invent_runs(services.runs)
            services.launcher.start(a_config(run__name="a run under way", training__max_steps=4000))
        with page_of(services, arguments.port) as address:
            print(f"The page on fakes is at {address} (Ctrl+C ends it).", flush=True)
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
