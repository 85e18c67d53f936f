"""All services of a page without a model: fakes on a home of their own, and a history of runs."""

import time
from pathlib import Path

from loratory.engine.paths import LoratoryHome
from loratory.engine.places.huggingface_jobs.account import HardwareList, logins_of
from loratory.engine.runs.history.events import FailedData
from loratory.engine.runs.store import RunStore
from loratory.ui.backend.dataset_checks import DatasetChecks
from loratory.ui.backend.models import KnownShapes, Tokenizers
from loratory.ui.backend.transfers import Transfers
from loratory.ui.services import Services
from tests.fake_chat import FakeChatSession
from tests.fake_inspector import FakeInspector
from tests.fake_launcher import FakeLauncher, a_device
from tests.fake_measurement import FakeMeasurement
from tests.fake_results import fake_results
from tests.fake_try import FakeTry
from tests.invented_runs import InventedRun, a_config, write_run


def fake_services(
    root: Path, seconds_per_step: float = 0.25, *, home: LoratoryHome | None = None, owner: str = "somebody"
) -> Services:
    """Services that need no model, on a home of their own."""
    home = home or LoratoryHome(root)
    home.make_writable()
    inspector = FakeInspector(delay_seconds=0.3, home=home)
    runs = RunStore(home, owner)
    return Services(
        home=home,
        transfers=Transfers(home),
        inspector=inspector,  # type: ignore[arg-type]
        shapes=KnownShapes(inspector),  # type: ignore[arg-type]
        runs=runs,
        launcher=FakeLauncher(runs, seconds_per_step),  # type: ignore[arg-type]
        chat=FakeChatSession(),  # type: ignore[arg-type]
        checks=DatasetChecks(inspector),  # type: ignore[arg-type]
        tokenizers=Tokenizers(lambda model, report: None),
        results=fake_results(home, seconds_per_step),
        hardware=HardwareList(lambda: logins_of(home)(owner)),
        measure=lambda config, estimate: FakeMeasurement(config, estimate, seconds_per_step),
        try_reward=lambda config, settings: FakeTry(home, config, settings, pace=seconds_per_step),
        devices=lambda: (a_device(),),
    )


def invent_runs(store: RunStore) -> None:
    """Write a history of a week, with every state once."""
    day = 86_400.0
    hub = {"model__id": "Qwen/Qwen3-0.6B", "dataset__source": "/data/support-chats.jsonl"}
    out_of_memory = FailedData(
        cause="out_of_memory",
        what="Memory ran out at step 31: 1.90 GiB were asked for and 0.40 GiB were free.",
        fix="Halve training.max_length, or switch gradient checkpointing on.",
    )
    stories = (
        (a_config(**hub, run__name="first try, full length"), InventedRun(answers=True, state="failed", steps=31, failed=out_of_memory, age_seconds=4 * day)),
        (a_config(**hub, adapter__r=8, training__learning_rate=1e-4), InventedRun(answers=True, steps=200, total_steps=200, floor=1.25, seed=3, age_seconds=3 * day)),
        (a_config(model__quantization="nf4", adapter__r=8), InventedRun(answers=True, floor=1.05, seed=4, seconds_per_step=1.3, age_seconds=day)),
        (a_config(adapter__r=32, adapter__lora_alpha=64), InventedRun(answers=True, state="interrupted", steps=70, seed=5, resumable_step=60, cause="The machine was restarted at step 70.", advice="Resume it; nothing before step 60 is lost.", age_seconds=day / 2)),
        (a_config(training__learning_rate=1e-3), InventedRun(answers=True, state="stopped", steps=44, seed=6, floor=1.0, age_seconds=day / 3)),
        (a_config(run__name="faq, rank 16"), InventedRun(answers=True, seed=7, warnings=("The learning rate is high for so few rows.",), age_seconds=7000)),
        (a_config(run__name="faq, rank 16, once more"), InventedRun(answers=True, state="queued", cause="The CPU is in use for training (faq, rank 16).")),
    )  # fmt: skip
    for config, story in stories:
        moment = time.time() - story.age_seconds
        past = RunStore(store.home, store.owner, clock=lambda moment=moment: moment)  # type: ignore[misc]
        write_run(past, config, story)
