"""The lab of a Space, whose people sign in with accounts of a stand-in for Hugging Face."""

from dataclasses import dataclass, field

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from engine.accounts.logins import Logins
from engine.accounts.oidc import Provider
from engine.accounts.throttle import SignInThrottle
from engine.space.environment import SpaceEnvironment
from tests.ui.front.institute import CLIENT, SECRET, running_institute
from tests.ui.front.lab import running_lab
from ui.front import serve
from ui.front.space import NoMirror, Space

CREATOR = "6032802e1f993496bc14d9e3"
DEMO_WORDS = "What strangers see"


class FakeDemo:
    """Says who it is for; its real page has a test of its own."""

    paths = frozenset({"/demo", "/demo/ask"})

    def routes(self):
        return [Route("/demo", self.welcome, methods=["GET"]), Route("/demo/ask", self.ask, methods=["POST"])]

    async def welcome(self, _request, why=""):
        return PlainTextResponse(f"{DEMO_WORDS}. {why}", 403 if why else 200)

    async def ask(self, _request):
        return PlainTextResponse("An answer")


@dataclass
class FakeMirror(NoMirror):
    """Says of each person what a test wants."""

    words: dict[str, str] = field(default_factory=dict)

    def unsaved(self, owner):
        return self.words.get(owner, "")


def environment_at(origin, institute, **changes):
    """A Space of Ann's that lets in bea and the organization gpu-lab."""
    given = {
        "space_id": "Ann/loratory", "host": origin.removeprefix("https://"), "creator": CREATOR, "author": "Ann",
        "client_id": CLIENT, "client_secret": SECRET, "scopes": ("openid", "profile", "jobs"), "provider": institute.issuer,
        "admitted": frozenset({"bea", "gpu-lab"}),
    }  # fmt: skip
    return SpaceEnvironment(**{**given, **changes})


def space_at(origin, institute, **changes):
    environment = environment_at(origin, institute, **changes)
    provider = Provider(environment.oidc, origin, institute.trust, asks_anew=False)
    return Space(environment, provider, FakeDemo(), FakeMirror(), Logins())


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
        spaces.append(space_at(origin, served))
        return spaces[-1]

    with running_lab(tmp_path_factory.mktemp("space"), space_at=make, behind_proxy=True) as running:
        yield running


@pytest.fixture
def space(lab, spaces):
    return spaces[-1]
