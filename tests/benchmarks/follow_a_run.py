"""`python -m tests.benchmarks.follow_a_run`: what it costs to look at a run of a million steps.

Prints how long an update with a new step takes in a real browser, from the page's question to the drawn charts, and its bytes.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Page, Response

from loratory.engine.runs.history.events import EvalData, StatusData, StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.run import Run
from loratory.ui.services import Services
from tests.benchmarks.runs_tab import say
from tests.browser.chromium import chromium, open_page, open_tab
from tests.browser.show_fake import page_of
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run

_LOOKS = 7
# Notes how long each question took whose answer was drawn: `react` works at once, while the answer is put into place.
_WATCH = """() => {
  window.updates = [];
  window.lossUpdates = [];
  const ask = window.fetch;
  let began = null;
  window.fetch = (...what) => {
    if (String(what[0]?.url ?? what[0]).includes('component_server')) began = performance.now();
    return ask(...what);
  };
  const react = Plotly.react;
  Plotly.react = async (place, ...rest) => {
    const drawn = await react(place, ...rest);
    const chart = place.closest('#loss-chart, #small-charts');
    if (began === null || !chart) return drawn;
    const took = performance.now() - began;
    if (chart.id === 'loss-chart') window.lossUpdates.push(took);
    else { window.updates.push(took); began = null; }
    return drawn;
  };
}"""


def _write_long_run(services: Services, steps: int) -> Run:
    run = write_run(services.runs, a_config(), InventedRun(state="running", steps=0, total_steps=steps))
    with EventWriter(run.folder.events, attempt=1) as writer:
        writer.append(StatusData(phase="training", total_steps=steps))
        writer.append(EvalData(step=0, eval_loss=3.0, eval_tokens=10, rows=2, seconds=0.1))
        for step in range(1, steps + 1):
            writer.append(_step(step, steps))
    return run


def _step(step: int, steps: int) -> StepData:
    return StepData(
        step=step, epoch=step / steps, loss=2.0 - step / steps + (step * 7919 % 101) / 300, learning_rate=1e-4,
        grad_norm=1.0 + (step % 13) / 20, tokens=step * 500, tokens_per_second=500.0 + step % 37, memory_bytes=2**30,
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory(prefix="loratory-benchmark-") as folder:
        services = fake_services(Path(folder))
        run = _write_long_run(services, steps)
        with page_of(services) as address, chromium() as browser:
            tab = open_page(browser, address)
            open_tab(tab, "Train")
            tab.locator("#loss-chart .main-svg").first.wait_for(timeout=120_000)
            measure_in_browser(tab, run, steps)


def measure_in_browser(tab: Page, run: Run, steps: int) -> None:
    """Append steps, and have the browser time each question until its charts are drawn."""
    sizes: list[int] = []

    def remember(response: Response) -> None:
        body = response.body() if "component_server" in response.url else b""
        if b"loss-chart" in body:
            sizes.append(len(body))

    tab.evaluate(_WATCH)
    tab.on("response", remember)
    with EventWriter(run.folder.events, attempt=1) as writer:
        for extra in range(1, _LOOKS + 1):
            writer.append(_step(steps + extra, steps))
            tab.wait_for_function(f"window.updates.length >= {extra}", timeout=60_000)
    for until, times in (("the drawn loss curve", "lossUpdates"), ("all five charts", "updates")):
        say(f"from the page's question to {until}", [value / 1000 for value in tab.evaluate(f"window.{times}")])
    print(f"bytes of such an update: {statistics.median(sizes) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
