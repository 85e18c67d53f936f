"""A real training whose Space loses its disk continues elsewhere as if nothing had happened."""

import contextlib
import json
import os
import shutil
import signal

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.inspector.session import Inspector
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.history.run_history import HistoryReader
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.launch import Launcher, Preflight
from loratory.engine.supervision.scheduler import SupervisorSettings
from loratory.engine.supervision.supervisor import Supervisor
from loratory.engine.training import faults
from tests.hub.jobs import STORAGE_CLIENT
from tests.hub.server import TOKEN
from tests.jobs.conftest import hugging_face  # noqa: F401 - a fixture
from tests.space.fake_bucket import FakeBucket
from tests.space.mirrored import Spaces, a_checkpoint, a_run, files_of
from tests.supervision.fake_runs import cpu, wait_for_state, wait_for_step
from tests.tiny_model import make_tiny_model
from tests.ui.front.space.test_space_process import start_space
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

STEPS = 20
ROWS = "\n".join(
    f'{{"instruction": "Say {number} in words", "output": "This is the number {number}."}}' for number in range(40)
)


def losses(run):
    steps = HistoryReader(run.folder.events).update().steps
    return list(zip(steps.column("step"), steps.column("loss"), strict=True))


def weights(run):
    return (run.folder.adapter / "adapter_model.safetensors").read_bytes()


@contextlib.contextmanager
def run_supervisor(home):
    supervisor = Supervisor(home, SupervisorSettings(devices=lambda: (cpu(),), tick_seconds=0.05))
    supervisor.start()
    try:
        yield
    finally:
        supervisor.stop()


def test_a_training_that_lost_its_disk_ends_with_the_same_losses_and_weights(tmp_path, monkeypatch):
    bucket = FakeBucket()
    spaces = Spaces(bucket, tmp_path)
    home = spaces.disk()
    rows = home.root / "uploads" / "ann" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text(ROWS)
    model = make_tiny_model(tmp_path / "tiny")
    config = config_from_mapping({
        "model": {"id": str(model)}, "dataset": {"source": str(rows), "eval_fraction": 0.2},
        "training": {
            "max_steps": STEPS, "max_length": 64, "save_steps": 4, "eval_steps": 10, "early_stopping_patience": None,
        },
        "run": {"devices": "cpu", "resume_after_restart": True},
    })  # fmt: skip
    store = RunStore(home, "ann")
    mirror = spaces.begin(home)
    with contextlib.closing(Inspector(home)) as inspector, run_supervisor(home):
        launcher = Launcher(store, Preflight(home, inspector, devices=lambda: (cpu(),)))
        whole = launcher.start(config)
        wait_for_state(whole, "completed")
        monkeypatch.setenv(faults.VARIABLE, f"training:step-6=wait:{tmp_path / 'nothing'}")
        run = launcher.start(config)
        wait_for_step(run, 6)  # behind which it writes nothing any more
        wait_until(lambda: run.folder.newest_checkpoint_step() is not None)
        mirror.save()
        os.kill(run.folder.read_worker().pid, signal.SIGKILL)
        monkeypatch.delenv(faults.VARIABLE)
    expected, adapter = losses(whole), weights(whole)
    saved_step = run.folder.newest_checkpoint_step()
    assert saved_step < STEPS
    shutil.rmtree(home.root)

    home.make_writable()  # the same place on another disk
    spaces.begin(home)
    assert (spaces.restored.runs, spaces.restored.left_out) == (2, ())
    assert run.folder.newest_checkpoint_step() == saved_step
    with run_supervisor(home):
        state = wait_for_state(run, "completed", "failed")

    assert (state.state, state.attempt) == ("completed", 2), state
    assert losses(run) == expected
    assert len(expected) == STEPS
    assert weights(run) == adapter == weights(whole)
    assert json.loads((whole.folder.adapter / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_a_space_that_is_asked_to_end_saves_and_the_next_one_has_everything(tmp_path, hugging_face):  # noqa: F811
    home = LoratoryHome(tmp_path / "home")
    home.make_writable()
    run = a_run(home, state="stopped", resumable_step=300)
    a_checkpoint(run, 300)
    remaining = files_of(run)
    space = {
        "HF_ENDPOINT": hugging_face.address, "HF_TOKEN": TOKEN, "LORATORY_BUCKET": "ada/mirror", "HF_HUB_OFFLINE": "",
        "PYTHONPATH": str(STORAGE_CLIENT),
    }  # fmt: skip
    with start_space(tmp_path, **space) as (server, _, log):
        pass
    assert server.returncode == 0, log.read_text()
    assert f"home/runs/ann/{run.id}/config.yaml" in hugging_face.files["ada/mirror"]
    assert "before everything was saved" not in log.read_text()

    shutil.rmtree(home.root)
    with start_space(tmp_path, **space) as (_, _, log):
        assert "Restored 1 run" in log.read_text()
        back = files_of(RunStore(home, "ann").get(run.id))
        assert back["adapter/adapter_model.safetensors"] == remaining["adapter/adapter_model.safetensors"]
        assert run.folder.newest_checkpoint_step() == 300
    for part in (log.read_bytes(), *hugging_face.files["ada/mirror"].values(), *files_of(run).values()):
        assert TOKEN.encode() not in part
