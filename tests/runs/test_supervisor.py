import pytest

from engine.runs.store import RunStore
from engine.runs.supervisor import Supervisor
from tests.runs.supervision import config_for, fake_settings, wait_for_state


@pytest.fixture
def store(home):
    return RunStore(home, "ann")


@pytest.fixture
def supervisor(home):
    supervisor = Supervisor(home, fake_settings())
    supervisor.start()
    yield supervisor
    supervisor.stop()


def test_a_run_goes_from_the_queue_to_completed(store, supervisor):
    run = store.create(config_for("steps=5 checkpoint=2"))

    state = wait_for_state(run, "completed", "failed")

    assert state.state == "completed", state
