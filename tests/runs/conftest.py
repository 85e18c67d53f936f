"""What tests of runs share: a person's store, and supervisors that end with their test."""

import pytest

from engine.paths import LoratoryHome
from engine.runs.store import RunStore
from engine.supervision.supervisor import Supervisor
from tests.runs.supervision import fake_settings


@pytest.fixture
def store(home) -> RunStore:
    """The runs of one person."""
    return RunStore(home, "ann")


@pytest.fixture
def start_supervisor(home):
    """Starts supervisors that end with the test."""
    supervisors: list[Supervisor] = []

    def start(of: LoratoryHome = home, **changes: object) -> Supervisor:
        supervisor = Supervisor(of, fake_settings(**changes))
        supervisor.start()
        supervisors.append(supervisor)
        return supervisor

    yield start
    for supervisor in supervisors:
        supervisor.stop()
