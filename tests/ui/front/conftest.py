"""A provider of identities for the labs here, one throttle of all of them, a lab's admin, and a demo."""

import time
from types import SimpleNamespace

import pytest

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import PublicAddress, audit_log_path
from loratory.engine.accounts.throttle import SignInThrottle
from loratory.engine.lab.queue import QueueBoard
from loratory.engine.runs.disk import DiskSamples
from loratory.ui.backend.lab import Caller, LabAdmin
from loratory.ui.front import serve
from tests.accounts.conftest import accounts, clock, database, make_person, quick_passwords, sessions  # noqa: F401
from tests.space.demo_parts import a_demo, with_run, with_sample
from tests.ui.front.institute import running_institute
from tests.ui.front.lab_admin import MONDAY


@pytest.fixture
def within_a_moment(monkeypatch):
    """No time passes for the limits: on a busy machine, a test may take longer than the minute that they count."""
    now = time.time()
    monkeypatch.setattr("limits.storage.memory.time", SimpleNamespace(time=lambda: now))


@pytest.fixture(scope="module")
def throttle():
    """Share one throttle among all labs: all tests have one address, which each test uses afresh."""
    shared = SignInThrottle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "SignInThrottle", lambda: shared)
        yield shared


@pytest.fixture(scope="module")
def module_institute(tmp_path_factory):
    with running_institute(tmp_path_factory.mktemp("institute")) as running:
        yield running


@pytest.fixture
def institute(module_institute, throttle):
    module_institute.reset()
    throttle._limiter.storage.reset()
    yield module_institute
    module_institute.reset()


@pytest.fixture
def demo_with_run(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo)
    return with_sample(demo)


@pytest.fixture
def admin(home, accounts, sessions, clock, make_person):  # noqa: F811
    """Return the lab as root manages it, with ann and bea in it."""
    make_person("root", "admin")
    make_person("ann")
    make_person("bea", "guest")
    address = PublicAddress.parse("https://gpu.lab.example")
    audit = AuditLog(audit_log_path(home), clock)
    board = QueueBoard(home, devices=tuple, programs=lambda _: ())
    disk = DiskSamples(home, lambda: ("ann", "bea", "root"), lambda: MONDAY)
    return LabAdmin(home, address, accounts, sessions, SignInThrottle(), audit, board, disk, "root")


@pytest.fixture
def caller(admin):
    return Caller(admin.sessions.begin(admin.accounts.person("root"), "10.0.0.1", "test"), "10.0.0.1")
