"""`python -m tests.browser.show_fake`: the whole page on invented runs, without torch; Ctrl+C ends it.

A folder's runs are invented anew at each start: `--empty` shows the page as a new person sees it.
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

from engine.paths import LoratoryHome
from engine.runs.events import FailedData
from engine.runs.store import RunStore
from tests.fakes import (
    FakeChatSession,
    FakeInspector,
    FakeLauncher,
    InventedRun,
    a_config,
    a_device,
    write_run,
)
from ui.build import build_app
from ui.checks import DatasetChecks
from ui.services import KnownShapes, Services
from ui.theme import STYLESHEETS, build_theme


def fake_services(root: Path, seconds_per_step: float = 0.25) -> Services:
    """Services that need no model, on a home of their own."""
    home = LoratoryHome(root)
    home.make_writable()
    inspector = FakeInspector(delay_seconds=0.3)
    runs = RunStore(home, "somebody")
    return Services(
        home=home,
        inspector=inspector,  # type: ignore[arg-type]
        shapes=KnownShapes(inspector),  # type: ignore[arg-type]
        runs=runs,
        launcher=FakeLauncher(runs, seconds_per_step),  # type: ignore[arg-type]
        chat=FakeChatSession(),  # type: ignore[arg-type]
        checks=DatasetChecks(inspector),  # type: ignore[arg-type]
        devices=lambda: (a_device(),),
    )


def invent_runs(store: RunStore) -> None:
    """A history as somebody has it after a week: every state once."""
    day = 86_400.0
    hub = {"model__id": "Qwen/Qwen3-0.6B", "dataset__source": "/data/support-chats.jsonl"}
    out_of_memory = FailedData(
        cause="out_of_memory",
        what="Memory ran out at step 31: 1.90 GiB were asked for and 0.40 GiB were free.",
        fix="Halve training.max_length, or switch gradient checkpointing on.",
    )
    invented = (
        (a_config(**hub, run__name="first try, full length"), InventedRun(state="failed", steps=31, failed=out_of_memory, age_seconds=4 * day)),
        (a_config(**hub, adapter__r=8, training__learning_rate=1e-4), InventedRun(steps=200, total_steps=200, floor=1.25, seed=3, age_seconds=3 * day)),
        (a_config(model__quantization="nf4", adapter__r=8), InventedRun(floor=1.05, seed=4, seconds_per_step=1.3, age_seconds=day)),
        (a_config(adapter__r=32, adapter__lora_alpha=64), InventedRun(state="interrupted", steps=70, seed=5, resumable_step=60, cause="The machine was restarted at step 70.", advice="Resume it; nothing before step 60 is lost.", age_seconds=day / 2)),
        (a_config(training__learning_rate=1e-3), InventedRun(state="stopped", steps=44, seed=6, floor=1.0, age_seconds=day / 3)),
        (a_config(run__name="faq, rank 16"), InventedRun(seed=7, warnings=("The learning rate is high for so few rows.",), age_seconds=7000)),
        (a_config(run__name="faq, rank 16, once more"), InventedRun(state="queued", cause="Waits: the CPU is in use for training (faq, rank 16).")),
    )  # fmt: skip
    for config, story in invented:
        moment = time.time() - story.age_seconds
        past = RunStore(store.home, store.owner, clock=lambda moment=moment: moment)  # type: ignore[misc]
        write_run(past, config, story)


@contextmanager
def shown(services: Services, port: int | None = None) -> Iterator[str]:
    """Serve the page on `services`; gives its address."""
    app = build_app(services)
    _, address, _ = app.launch(
        server_name="127.0.0.1",
        server_port=port,
        quiet=True,
        share=False,
        prevent_thread_lock=True,
        theme=build_theme(),
        css_paths=STYLESHEETS,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
    )
    try:
        yield address
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
        with shown(services, arguments.port) as address:
            print(f"The page on fakes is at {address} (Ctrl+C ends it).", flush=True)
            while True:
                time.sleep(3600)


if __name__ == "__main__":
    main()
