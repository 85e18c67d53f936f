"""`python -m tests.benchmarks.ten_pages`: what ten open pages on one run cost the server.

A server with its supervisor, a worker process that logs a step every so often, and ten pages in a real browser. Prints
the server's processor time as a share of one core: while steps come, and of the same pages on a run that has ended.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from playwright.sync_api import Page

from engine.paths import LoratoryHome
from engine.runs.control import request_stop
from engine.runs.run import Run
from engine.runs.store import RunStore
from engine.runs.supervision.supervisor import Supervisor
from tests.browser.chromium import chromium, open_page, open_tab
from tests.browser.show_fake import page_of
from tests.fake_services import fake_services
from tests.runs.supervision import config_for, fake_settings, wait_until

_SETTLE_SECONDS = 15


def serve(home: Path) -> None:
    """The server that is measured; prints its address, and ends with its standard input."""
    services = fake_services(home)
    supervisor = Supervisor(services.home, fake_settings())
    supervisor.start()
    with page_of(services) as address:
        print(address, flush=True)
        sys.stdin.read()
    supervisor.stop()


@contextlib.contextmanager
def server(home: Path) -> Iterator[tuple[str, psutil.Process]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.ten_pages", "--serve", str(home)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = next(line for line in process.stdout if line.startswith("http"))
        yield address.strip(), psutil.Process(process.pid)
    finally:
        process.communicate()


def follow(page: Page) -> None:
    open_tab(page, "Train")
    page.locator("#train-view label", has_text="Follow").click()
    page.locator("#loss-chart .main-svg").first.wait_for(timeout=120_000)


def share_of_a_core(process: psutil.Process, seconds: float) -> float:
    """Processor time of the server alone, without its workers."""
    began, before = time.monotonic(), process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--pace", type=float, default=1.0, help="seconds between two steps")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each figure is measured")
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return
    with tempfile.TemporaryDirectory(prefix="loratory-benchmark-") as folder:
        home = LoratoryHome(Path(folder))
        home.make_writable()
        run = RunStore(home, "somebody").create(config_for(f"steps=1000000 pace={options.pace}"))
        with server(home.root) as (address, process), chromium() as browser:
            _say("no page is open, a run under way", share_of_a_core(process, options.seconds / 3))
            for _ in range(options.pages):
                follow(open_page(browser, address))
            time.sleep(_SETTLE_SECONDS)
            words = f"{options.pages} pages on a run that logs a step every {options.pace:g} s"
            _say(f"{words} (wanted: under 5%)", share_of_a_core(process, options.seconds))
            _end(run)
            time.sleep(_SETTLE_SECONDS)
            _say(f"{options.pages} pages on a run that has ended", share_of_a_core(process, options.seconds / 2))
            print(f"resident memory of the server: {process.memory_info().rss / 2**20:.0f} MiB")


def _end(run: Run) -> None:
    request_stop(run)
    wait_until(lambda: run.folder.read_state().is_final)


def _say(what: str, share: float) -> None:
    print(f"{what:<75}{share:>8.1%} of a core", flush=True)


if __name__ == "__main__":
    main()
