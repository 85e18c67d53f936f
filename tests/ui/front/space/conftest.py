"""The lab of a Space, whose people sign in with accounts of a stand-in for Hugging Face."""

import pytest

from engine.accounts.throttle import SignInThrottle
from tests.ui.front.institute import running_institute
from tests.ui.front.lab import running_lab
from tests.ui.front.space.stand_in import space_at
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


@pytest.fixture(scope="module")
def spaces():
    """The Spaces that were made here, the newest last."""
    return []


@pytest.fixture(scope="module")
def lab(tmp_path_factory, served, throttle, spaces):
    def make(origin):
        spaces.append(space_at(origin, served.issuer, served.trust))
        return spaces[-1]

    with running_lab(tmp_path_factory.mktemp("space"), space_at=make, behind_proxy=True) as running:
        yield running


@pytest.fixture
def space(lab, spaces):
    return spaces[-1]
