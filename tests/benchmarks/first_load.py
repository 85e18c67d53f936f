"""`python -m tests.benchmarks.first_load [--also CHECKOUT …]`: what the first visit of a browser costs.

Starts `app.py` on an empty home, opens the page in a browser without a cache, and prints the requests and bytes (as they
came over the wire, with headers) until ten seconds after its tabs can be clicked, when the page was painted first and
usable, and the processor time of the server while that one page stays open, first without a run, then in front of one that
logs a step every second. Beside the last stands what a process takes meanwhile that only wakes up five times a second: where it
varies from visit to visit, the machine does. `--also` measures other checkouts in turn with this one.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import Browser, Page

from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.runs.store import RunStore
from tests.benchmarks.work import Work, steps_each_second
from tests.browser.chromium import chromium
from tests.browser.real_server import ROOT, real_server

_LOAD_SECONDS = 10  # from when the tabs can be clicked, so a busy machine counts no fewer
_SETTLE_SECONDS = 10
_SLEEPER = "import time\nwhile True: time.sleep(0.2)"
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


@dataclass
class Load:
    """What one visit asked for."""

    bytes_of: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # by request
    urls: dict[str, str] = field(default_factory=dict)  # by request
    paint_milliseconds: float = 0.0  # milliseconds, as the browser says
    usable: float = 0.0  # seconds until the tabs are there
    idle: float = 0.0  # share of a core, without a run
    following: float = 0.0  # the same in front of an active run
    sleeper: float = 0.0  # of `_SLEEPER` meanwhile
    resident_mib: float = 0.0

    def watch(self, page: Page) -> None:
        """Count from now on."""
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.requestWillBeSent", self._on_request)
        session.on("Network.dataReceived", lambda event: self._on_response(event, "encodedDataLength"))
        session.on("Network.loadingFinished", self._on_end)

    def _on_request(self, event: dict[str, Any]) -> None:
        if not event["request"]["url"].startswith(("data:", "blob:")):
            self.urls[event["requestId"]] = event["request"]["url"]

    def _on_response(self, event: dict[str, Any], name: str) -> None:
        self.bytes_of[event["requestId"]] += event[name]

    def _on_end(self, event: dict[str, Any]) -> None:
        self.bytes_of[event["requestId"]] = event["encodedDataLength"]  # the whole, with headers

    def by_url(self) -> Iterator[tuple[int, int, str]]:
        """Yield bytes, requests and path, the largest first."""
        size: Counter[str] = Counter()
        count: Counter[str] = Counter()
        for request, url in self.urls.items():
            path = urlsplit(url).path
            size[path] += self.bytes_of[request]
            count[path] += 1
        yield from ((octets, count[path], path) for path, octets in size.most_common())


def visit(browser: Browser, checkout: Path, idle_seconds: float) -> Load:
    """Open the page of a fresh server of `checkout` once."""
    load = Load()
    with (
        tempfile.TemporaryDirectory(prefix="loratory-benchmark-", ignore_cleanup_errors=True) as folder,
        _server(checkout, Path(folder)) as (url, process),
        _page(browser) as page,
    ):
        load.watch(page)
        began = time.perf_counter()
        page.goto(url)
        page.locator("#tabs button[role=tab]").first.wait_for()
        load.usable = time.perf_counter() - began
        page.wait_for_timeout(1000 * _LOAD_SECONDS)
        requests, received = dict(load.urls), dict(load.bytes_of)
        load.paint_milliseconds = page.evaluate(FIRST_PAINT)
        page.wait_for_timeout(1000 * _SETTLE_SECONDS)
        if idle_seconds:
            load.idle = share_of_a_core(process, idle_seconds)
            load.following, load.sleeper = _follow(page, url, Path(folder), process, idle_seconds)
        load.resident_mib = process.memory_info().rss / 2**20
    # What was asked while nothing happened comes in when the page is closed.
    load.urls, load.bytes_of = requests, defaultdict(int, received)
    return load


def _follow(page: Page, url: str, home: Path, process: psutil.Process, seconds: float) -> tuple[float, float]:
    with (
        steps_each_second([Work(RunStore(LoratoryHome(home), local_owner()))]),
        psutil.Popen([sys.executable, "-c", _SLEEPER]) as sleeper,
    ):
        page.goto(url)
        page.locator("#run-heading").wait_for()
        page.wait_for_timeout(1000 * _SETTLE_SECONDS)
        before = sum(sleeper.cpu_times()[:2])
        share = share_of_a_core(process, seconds)
        slept = (sum(sleeper.cpu_times()[:2]) - before) / seconds
        sleeper.kill()
        return share, slept


@contextmanager
def _server(checkout: Path, home: Path) -> Iterator[tuple[str, psutil.Process]]:
    # Its own modules, also where it has no environment of its own.
    path = str(checkout / ".package")
    with real_server(home, root=checkout, python=other_python(checkout), PYTHONPATH=path) as server:
        yield server.url, psutil.Process(server.process.pid)


def share_of_a_core(process: psutil.Process, seconds: float) -> float:
    """Processor time of a server alone, without its workers."""
    began, before = time.monotonic(), process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / (time.monotonic() - began)


def other_python(checkout: Path) -> str:
    """Return the Python of a checkout's own environment, where it has one."""
    own = checkout / ".venv/bin/python"
    return str(own) if own.exists() else sys.executable


@contextmanager
def _page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1366, "height": 860})
    try:
        yield context.new_page()
    finally:
        context.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--also", type=Path, action="append", default=[], help="another checkout")
    parser.add_argument("--visits", type=int, default=3, help="of each checkout")
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--urls", action="store_true", help="list the requests of the first visits")
    options = parser.parse_args()
    checkouts = [ROOT, *(path.resolve() for path in options.also)]
    loads: dict[Path, list[Load]] = defaultdict(list)
    with chromium() as browser:
        for number in range(options.visits):
            for checkout in checkouts:
                load = visit(browser, checkout, options.idle_seconds)
                loads[checkout].append(load)
                if options.urls and number == 0:
                    for octets, count, path in load.by_url():
                        print(f"{octets:>9,} B {count:>3} × {path}")
    for checkout, visits in loads.items():
        print(f"{checkout.name}, median of {len(visits)} visits (range):")
        _say("requests", [len(load.urls) for load in visits], ",.0f")
        _say("MB", [sum(load.bytes_of[url] for url in load.urls) / 1e6 for load in visits], ".3f")
        _say("first paint, ms", [load.paint_milliseconds for load in visits], ",.0f")
        _say("tabs usable, s", [load.usable for load in visits], ".2f")
        _say("server, one page open, % of a core", [100 * load.idle for load in visits], ".2f")
        _say("server, one page on a run, % of a core", [100 * load.following for load in visits], ".2f")
        _say("a process that sleeps, % of a core", [100 * load.sleeper for load in visits], ".2f")
        _say("server, resident MiB", [load.resident_mib for load in visits], ".0f")


def _say(what: str, values: list[float], how: str) -> None:
    print(f"  {what:<40}{statistics.median(values):{how}} ({min(values):{how}} to {max(values):{how}})")


if __name__ == "__main__":
    main()
