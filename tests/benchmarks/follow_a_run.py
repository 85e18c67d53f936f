"""`python -m tests.benchmarks.follow_a_run`: what it costs to look at a run of a million steps.

Prints the time from a new step on the disk to the figure's JSON, its size, the time that the browser takes to draw it,
and the time of a tick that finds nothing new.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import gradio as gr

from engine.runs.event_log import EventWriter
from engine.runs.events import EvalData, StatusData, StepData
from engine.runs.run import Run
from tests.browser.chromium import chromium, open_page, open_tab
from tests.browser.show_fake import shown
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run
from ui.page import Page
from ui.services import Services
from ui.tabs.train import TrainTab

_LOOKS = 7


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
        with gr.Blocks():
            page = Page(services)
            with gr.Tabs() as page.tabs, gr.Tab("Train"):
                follow = TrainTab(page).follow
        began = time.perf_counter()
        drawn = follow.look(run.id, "", 0.9, False, False)
        print(f"first look at {steps:,} steps: {time.perf_counter() - began:.2f} s")
        updates, idle = [], []
        with EventWriter(run.folder.events, attempt=1) as writer:
            for extra in range(1, _LOOKS + 1):
                writer.append(_step(steps + extra, steps))
                began = time.perf_counter()
                drawn = follow.tick(run.id, drawn.stamp, 0.9, False, False)
                updates.append(time.perf_counter() - began)
                began = time.perf_counter()
                follow.tick(run.id, drawn.stamp, 0.9, False, False)
                idle.append(time.perf_counter() - began)
        _say("a tick with a new step, both figures", updates)
        _say("a tick with nothing new", idle)
        print(f"loss figure {len(drawn.loss) / 1000:.0f} kB, small figures {len(drawn.small) / 1000:.0f} kB of JSON")
        with shown(services) as address, chromium() as browser:
            tab = open_page(browser, address)
            open_tab(tab, "Train")
            tab.locator("#loss-chart .main-svg").first.wait_for(timeout=120_000)
            milliseconds = tab.evaluate(
                """async () => {
                  const place = document.querySelector('#loss-chart .chart');
                  const times = [];
                  for (let look = 0; look < 7; look++) {
                    const began = performance.now();
                    await Plotly.react(place, JSON.parse(JSON.stringify(place.data)), place.layout);
                    times.push(performance.now() - began);
                  }
                  return times;
                }"""
            )
            _say("the browser draws the loss figure", [value / 1000 for value in milliseconds])


def _say(what: str, seconds: list[float]) -> None:
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    print(f"{what}: {middle * 1000:.1f} ms (from {low * 1000:.1f} to {high * 1000:.1f})")


if __name__ == "__main__":
    main()
