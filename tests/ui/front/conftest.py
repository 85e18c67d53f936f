"""A provider of identities for the labs here, one throttle of all of them, and a demo."""

import pytest

from engine.accounts.throttle import SignInThrottle
from tests.space.demo_parts import a_demo, with_run, with_sample
from tests.ui.front.institute import running_institute
from ui.front import serve


@pytest.fixture(scope="module")
def throttle():
    """The one of all labs here: all tests have one address, which each of them uses afresh."""
    one = SignInThrottle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "SignInThrottle", lambda: one)
        yield one


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with running_institute(tmp_path_factory.mktemp("institute")) as running:
        yield running


@pytest.fixture
def institute(served, throttle):
    served.reset()
    throttle._limiter.storage.reset()
    yield served
    served.reset()


@pytest.fixture
def finished(tmp_path):
    demo = a_demo(tmp_path)
    with_run(demo)
    return with_sample(demo)
