"""`python -m tests.benchmarks.newcomer [--also CHECKOUT …]`: from the first paint of a page to the first training step.

A server on a home that has the demo model, and a browser that has never been there: one click loads the quick start, one
starts it. Prints the seconds, where they went, and the processor time that all of it took, which compares on a busy machine
as well. `--also` measures other checkouts in turn with this one. Wanted: at most 25 s on two cores.
"""

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, expect

from engine.config.run import ModelConfig
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from tests.benchmarks.first_load import FIRST_PAINT, other_python
from tests.browser.chromium import chromium
from tests.browser.real_server import ROOT, real_server

_PATIENCE_MS = 600_000
_SOME_STEP = re.compile(r"[Ss]tep [1-9]")


def start_here(page: Page, home: Path) -> dict[str, float]:
    """Click what a newcomer clicks, and return when things happened, in seconds since the first paint."""
    page.locator("#start-here button").wait_for()
    painted = page.evaluate(f"performance.timeOrigin + {FIRST_PAINT}") / 1000
    moments = {"the card can be clicked": time.time()}
    page.locator("#start-here button").click()
    page.locator("#next-step-start").wait_for()
    moments["the start can be clicked"] = time.time()
    page.locator("#next-step-start").click()
    expect(page.locator("#run-heading")).to_contain_text(_SOME_STEP, timeout=_PATIENCE_MS)
    seen = time.time()
    (config,) = home.glob("runs/*/*/config.yaml")
    moments["the draft is checked, and the run is queued"] = config.stat().st_mtime
    for line in (config.parent / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        words = f"{event['kind']}: {event['data'].get('phase', '')} {event['data'].get('message', '')}"
        moments.setdefault(f"  {words}".rstrip(), event["time"])
        if event["kind"] == "step":
            break
    moments["the page shows a step"] = seen
    return {what: moment - painted for what, moment in moments.items()}


def visit(browser: Browser, checkout: Path, models: Path) -> dict[str, float]:
    """Be a newcomer once, on a fresh server of `checkout`."""
    with tempfile.TemporaryDirectory(prefix="loratory-benchmark-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / "models").symlink_to(models)
        with real_server(home, root=checkout, python=other_python(checkout)) as server:
            context = browser.new_context(viewport={"width": 1366, "height": 860})
            context.set_default_timeout(_PATIENCE_MS)
            page = context.new_page()
            page.goto(server.url)
            moments = start_here(page, home)
            everything = psutil.Process(server.process.pid)
            computed = sum(
                sum(process.cpu_times()[:4]) for process in [everything, *everything.children(recursive=True)]
            )
            page.locator("#stop").click()
            page.locator("#open-chat").wait_for()
            context.close()
    return {**moments, "processor time of server and worker": computed}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--also", type=Path, action="append", default=[], help="another checkout")
    parser.add_argument("--visits", type=int, default=3, help="of each checkout")
    parser.add_argument("--home", type=Path, help="with the demo model; otherwise it is unpacked first")
    options = parser.parse_args()
    took: dict[Path, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="loratory-benchmark-") as folder, chromium() as browser:
        demo = LoratoryHome((options.home or Path(folder)).resolve())
        demo.make_writable()
        resolve_model(ModelConfig(id="smollm2-135m-instruct"), demo)
        for _ in range(options.visits):
            for checkout in (ROOT, *(path.resolve() for path in options.also)):
                for what, seconds in visit(browser, checkout, demo.models).items():
                    took[checkout][what].append(seconds)
    for checkout, moments in took.items():
        print(f"{checkout.name}, seconds since the first paint, median of {options.visits} (range):")
        for what, times in moments.items():
            print(f"  {what:<60.60}{statistics.median(times):6.1f} ({min(times):.1f} to {max(times):.1f})")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
