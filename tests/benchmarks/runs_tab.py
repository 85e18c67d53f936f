"""`python -m tests.benchmarks.runs_tab [--runs 5000]`: how soon a person sees thousands of runs, and finds one.

Starts the page on a home that is full of runs, and measures in a real browser, from the click on the tab to the first
table, and from the last letter typed to the table that it filters. The server is restarted for each first table.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page

from loratory.engine.config.load import config_from_mapping, config_to_yaml
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.runs.history.events import StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.provenance import Provenance, describe_config
from loratory.engine.runs.run import RunFolder, RunState
from tests.browser.chromium import chromium, open_page
from tests.browser.real_server import real_server

_STARTS = 3
_SEARCHES = ("run 17", "qwen run 4", "llama", "run 99", "smollm2 run 5")
# Resolves once what the table shows answers `wanted`; asks at each frame, as an eye would.
_FROM_CLICK = """(name) => new Promise((done) => {
  const tab = [...document.querySelectorAll('#tabs button[role=tab]')].find((one) => one.textContent.trim() === name);
  const began = performance.now();
  const look = () => document.querySelector('#runs-table tr[data-pick]')?.offsetParent
    ? done(performance.now() - began) : requestAnimationFrame(look);
  tab.click();
  look();
})"""
_FROM_LETTER = """(words) => new Promise((done) => {
  const box = document.querySelector('#runs-search textarea, #runs-search input');
  const table = document.querySelector('#runs-table');
  const before = table.innerHTML;
  const answers = () => table.innerHTML !== before && table.querySelector('tr[data-pick]');
  const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set;
  const began = performance.now();
  const look = () => answers() ? done(performance.now() - began) : requestAnimationFrame(look);
  set.call(box, words);
  box.dispatchEvent(new Event('input', {bubbles: true}));
  look();
})"""
_CLEAR = """() => {
  const box = document.querySelector('#runs-search textarea, #runs-search input');
  Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set.call(box, '');
  box.dispatchEvent(new Event('input', {bubbles: true}));
}"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    count = parser.parse_args().runs
    first: list[float] = []
    matches: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="loratory-benchmark-", ignore_cleanup_errors=True) as folder,
        chromium() as browser,
    ):
        home = LoratoryHome(Path(folder) / "home")
        home.make_writable()
        make_runs(home, count, owner=local_owner())
        for start in range(_STARTS + 1):
            with real_server(home.root) as server:
                seconds = measure(browser, server.url, matches if start else [])
                if start:
                    first.append(seconds)
                else:
                    say(
                        f"{count:,} runs that no server has ever seen, from the click to the first table (wanted: 1 s)",
                        [seconds],
                    )
    say(f"{count:,} runs, from the click on Runs to the first table of a fresh server (wanted: 1 s)", first)
    say(f"{count:,} runs, from the last letter to the filtered table (wanted: 200 ms)", matches)


def make_runs(home: LoratoryHome, count: int, owner: str) -> None:
    """Write ended runs of eleven steps as a worker leaves them, without waiting for the disk each time."""
    folder = home.runs / owner
    folder.mkdir(parents=True)
    models = ("Qwen/Qwen3-0.6B", "smollm2-135m-instruct", "meta-llama/Llama-3.2-1B")
    for number in range(count):
        run = RunFolder(folder / f"2026{number // 2500 + 1:02d}01-{number % 24:02d}0000-000-{number:04x}")
        run.path.mkdir()
        name = {"name": f"Run {number % 100}"}
        config = config_from_mapping(
            {"model": {"id": models[number % 3]}, "dataset": {"source": "data.jsonl"}, "run": name}
        )
        run.config.write_text(config_to_yaml(config))
        record = Provenance(created=1.7e9 + number).model_copy(update=describe_config(config))
        run.provenance.write_text(record.model_dump_json())
        run.state.write_text(RunState(state="completed", started=1.0, ended=2.0).model_dump_json())
        with EventWriter(run.events, 1) as events:
            for step in range(1, 12):
                events.append(
                    StepData(
                        step=step, epoch=step / 11, loss=3.0 - number / count - step / 20, learning_rate=2e-4, grad_norm=0.5,
                        tokens=step * 512, trained_tokens=step * 300, tokens_per_second=900.0, memory_bytes=1_500_000_000,
                    )
                )  # fmt: skip


def measure(browser: Browser, address: str, milliseconds: list[float]) -> float:
    """Return the seconds to the first table; appends the seconds of each search."""
    page = open_page(browser, address)
    page.wait_for_timeout(2000)  # the page has done what it does at its start
    seconds: float = page.evaluate(_FROM_CLICK, "Runs")
    page.wait_for_function(
        "() => !document.querySelector('#runs-table').innerText.includes('older runs')", timeout=60_000
    )
    for query in _SEARCHES:
        milliseconds.append(page.evaluate(_FROM_LETTER, query) / 1000)
        clear(page)
    page.context.close()
    return seconds / 1000


def clear(page: Page) -> None:
    """Show all runs again before the next search."""
    page.evaluate(_CLEAR)
    page.wait_for_function("() => document.querySelectorAll('#runs-table tr[data-pick]').length >= 100")


def say(what: str, seconds: list[float]) -> None:
    """Print median, least and most."""
    middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
    print(f"{what}: {middle * 1000:.0f} ms (from {low * 1000:.0f} to {high * 1000:.0f})", flush=True)


if __name__ == "__main__":
    main()
