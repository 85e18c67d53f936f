"""Real trainings through the stand-in for Hugging Face: the same losses as here, and every way to end."""

import contextlib
import json
import time
from types import SimpleNamespace

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.inspector.session import Inspector
from loratory.engine.places import make_executors
from loratory.engine.places.huggingface_jobs.account import HubLogin, read_flavors
from loratory.engine.places.huggingface_jobs.job import JobsExecutor
from loratory.engine.places.huggingface_jobs.layout import JobRecord, JobRequest
from loratory.engine.runs.control import request_resume, request_stop
from loratory.engine.runs.history.run_history import HistoryReader
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.launch import Launcher, Preflight
from loratory.engine.supervision.scheduler import SupervisorSettings
from loratory.engine.supervision.supervisor import Supervisor
from tests.hub.server import TOKEN
from tests.supervision.fake_runs import cpu
from tests.tiny_model import make_tiny_model
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

ROWS = "\n".join(
    f'{{"instruction": "Say {number} in words", "output": "This is the number {number}."}}' for number in range(40)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def start(home, api, model, tmp_path):
    """Start runs, supervised, here or through the stand-in."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    settings = SupervisorSettings(
        executors=lambda context: {**make_executors(context), "jobs": JobsExecutor(home, lambda _: HubLogin(api), 0.2)},
        devices=lambda: (cpu(),), tick_seconds=0.05,
    )  # fmt: skip
    store = RunStore(home, "local")
    with contextlib.ExitStack() as stack:
        inspector = stack.enter_context(contextlib.closing(Inspector(home)))
        flavors = lambda: read_flavors(api.list_jobs_hardware())  # noqa: E731
        launcher = Launcher(store, Preflight(home, inspector, devices=lambda: (cpu(),), flavors=flavors))
        supervising = contextlib.ExitStack()
        stack.push(supervising)

        def supervise():
            supervisor = Supervisor(home, settings)
            supervisor.start()
            supervising.callback(supervisor.stop)

        def begin(where="jobs", **training):
            return launcher.start(config_from_mapping({
                "model": {"id": str(model)},
                "dataset": {"source": str(tmp_path / "rows.jsonl"), "eval_fraction": 0.2},
                "training": {
                    "max_length": 64, "save_steps": 4, "eval_steps": 20, "early_stopping_patience": None, **training,
                },
                "run": {"where": where, "devices": "cpu"},
                "jobs": {"flavor": "cpu-basic", "limit_hours": 0.5},
            }))  # fmt: skip

        supervise()
        yield SimpleNamespace(run=begin, supervise=supervise, unsupervise=supervising.close)


def state_of(run):
    return run.folder.read_state()


def losses(run):
    steps = HistoryReader(run.folder.events).update().steps
    return list(zip(steps.column("step"), steps.column("loss"), strict=True))


def adapter_of(run):
    files = {path.name: path.read_bytes() for path in run.folder.adapter.iterdir()}
    config = json.loads(files.pop("adapter_config.json"))
    return files, config | {"target_modules": sorted(config["target_modules"])}  # PEFT writes a set


def pieces_of_events(hugging_face):
    return sum("/events/" in name for name in list(hugging_face.files["ada/loratory-runs"]))


def has_ended(run):
    wait_until(lambda: state_of(run).is_final)
    return state_of(run)


def test_a_job_at_its_time_limit_is_resumed_elsewhere_as_if_nothing_had_happened(start, hugging_face, home):
    saved: list[int] = []

    def end_at_the_first_checkpoint(name):
        if name.endswith("/MANIFEST.json") and not saved:
            saved.append(int(name.split("/")[-2].removeprefix("step-")))
            hugging_face.end(hugging_face.only_job(), "ERROR", "Job timeout")

    hugging_face.on_store = lambda name: time.sleep(0.8 if "/events/" in name else 0)  # its events are there before it
    hugging_face.on_stored = end_at_the_first_checkpoint
    run, whole = start.run(max_steps=40), start.run(where="local", max_steps=40)

    state = has_ended(run)
    assert (state.state, state.reason, state.resumable_step) == ("interrupted", "ended_by_executor", saved[0])
    hugging_face.on_store = lambda _: None
    assert "its time limit of 0.5 h" in state.cause
    JobRequest(flavor="cpu-upgrade", limit_hours=2).save(run.folder)
    request_resume(home, run)
    wait_until(lambda: len(hugging_face.jobs) == 2)

    _, second = hugging_face.jobs.values()
    assert has_ended(run).state == "completed", (state_of(run), second.log.read_text())
    assert has_ended(whole).state == "completed"
    assert losses(run) == losses(whole)
    assert len(losses(run)) == 40
    assert adapter_of(run) == adapter_of(whole)
    assert (second.spec["flavor"], second.spec["timeoutSeconds"]) == ("cpu-upgrade", 7200)
    record = JobRecord.read(run.folder)
    assert record.is_over
    assert record.cost_usd > record.earlier_usd > 0
    assert state_of(run).device == "CPU Upgrade at Hugging Face"
    assert [name for name in hugging_face.files["ada/loratory-runs"] if not name.startswith("wheels/")] == []
    for path in run.folder.path.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def test_a_stop_saves_and_a_server_that_was_away_finds_the_job_again(start, hugging_face, home):
    run = start.run(max_steps=100_000)
    wait_until(lambda: len(losses(run)) > 3)
    before = hugging_face.requests["submit"]
    start.unsupervise()
    step_before = len(losses(run))
    piece_count = pieces_of_events(hugging_face)
    wait_until(lambda: pieces_of_events(hugging_face) > piece_count)  # none of which is lost
    start.supervise()
    wait_until(lambda: len(losses(run)) > step_before)
    request_stop(run)

    state = has_ended(run)
    assert (state.state, state.reason) == ("stopped", "stopped_on_request"), state
    assert hugging_face.requests["submit"] == before
    steps = [step for step, _ in losses(run)]
    assert steps == list(range(1, len(steps) + 1))
    assert (run.folder.adapter / "adapter_model.safetensors").is_file()
    assert state.resumable_step == steps[-1]
