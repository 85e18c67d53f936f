import pytest

from loratory.engine.supervision.launch import Preflight
from tests.supervision.fake_preflight import FakeInspector, resolve
from tests.supervision.fake_runs import cpu


@pytest.fixture
def inspector():
    return FakeInspector()


@pytest.fixture
def preflight(home, inspector):
    return Preflight(home, inspector, devices=lambda: (cpu(),), resolve=resolve)
