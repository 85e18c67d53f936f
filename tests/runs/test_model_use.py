"""What needs which model: runs, and the processes of chats, evaluations and exports."""

import subprocess
import sys

import pytest

from engine.hardware.device_job import models_in_use, note_model
from engine.models.cache_space import ModelUse
from engine.models.demo import DEMO_MODEL_ID
from engine.models.source import DEMO_HUB_ID
from engine.processes.liveness import ProcessIdentity
from engine.runs.disk import model_uses, models_needed_by
from engine.runs.provenance import Provenance
from engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run
from tests.runs.supervision import wait_until


def test_runs_that_wait_or_are_at_work_need_their_model_and_ended_ones_used_it(home):
    source = Provenance(model_source="org/model")
    stores = [RunStore(home, owner, clock=lambda: 1_700_000_000.0) for owner in ("ann", "bob")]
    waiting, ended = stores[0].create(a_config(), source), stores[1].create(a_config(), source)
    ended.folder.write_state(ended.folder.read_state().model_copy(update={"state": "completed"}))

    assert model_uses(home) == {"org/model": ModelUse(1_700_000_000.0, 2, (f"ann/{waiting.id}",))}


def test_a_run_with_a_missing_state_keeps_its_model(home):
    run = RunStore(home, "ann").create(a_config(), Provenance(model_source="org/model"))
    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "completed"}))
    assert model_uses(home)["org/model"].needed_by == ()
    run.folder.state.unlink()

    assert model_uses(home)["org/model"].needed_by == (f"ann/{run.id}",)


@pytest.mark.parametrize("state", ["completed", "queued"])
def test_a_run_whose_model_is_not_from_the_hub_needs_nothing_there(home, state):
    write_run(RunStore(home, "ann"), a_config(), InventedRun(state=state))
    assert model_uses(home) == {}


@pytest.fixture
def process():
    """A process of some work, as its identity."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        identity = ProcessIdentity.of(running.pid)
        assert identity is not None
        yield identity
        running.kill()


@pytest.mark.parametrize("purpose", ["chat", "evaluation", "export", "measurement"])
@pytest.mark.parametrize(("name", "hub_id"), [("org/model", "org/model"), (DEMO_MODEL_ID, DEMO_HUB_ID)])
def test_work_keeps_its_model_until_its_process_ends(home, process, purpose, name, hub_id):
    ended = ProcessIdentity.current().model_copy(update={"start_time": 1.0})
    note_model(home.of("bob"), name, purpose, ended)
    note_model(home.of("ann"), name, purpose, process)

    assert model_uses(home) == {hub_id: ModelUse(needed_by=(f"ann/{purpose}",))}
    assert models_needed_by(RunStore(home.of("ann"), "ann")) == {hub_id}
    assert models_needed_by(RunStore(home.of("bob"), "bob")) == set()

    subprocess.run(["kill", str(process.pid)], check=True)
    wait_until(lambda: not models_in_use(home))
    assert model_uses(home) == {}
