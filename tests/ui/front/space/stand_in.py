"""A Space without Hugging Face around it."""

from collections import defaultdict

from starlette.responses import PlainTextResponse
from starlette.routing import Route

from loratory.engine.accounts.oidc import Provider
from loratory.engine.space.environment import SpaceEnvironment
from loratory.ui.front.space import Space
from tests.ui.front.institute import CLIENT, SECRET

CREATOR = "6032802e1f993496bc14d9e3"
DEMO_WORDS = "What strangers see"
UNSAVED: defaultdict[str, str] = defaultdict(str)  # what each person would lose, as a test wants it


class FakeDemo:
    """Says who it is for; its real page has a test of its own."""

    def routes(self):
        return [
            Route("/demo", self.welcome, methods=["GET"]),
            Route("/demo/ask", self.answer_question, methods=["POST"]),
        ]

    async def welcome(self, _request, why=""):
        return PlainTextResponse(f"{DEMO_WORDS}. {why}", 403 if why else 200)

    async def answer_question(self, _request):
        return PlainTextResponse("An answer")


def environment_at(origin, issuer, **changes):
    """Return a Space of Ann's that lets in bea and the organization gpu-lab."""
    settings = {
        "space_id": "Ann/loratory", "host": origin.removeprefix("https://"), "creator": CREATOR, "author": "Ann",
        "client_id": CLIENT, "client_secret": SECRET, "scopes": ("openid", "profile", "jobs"), "provider": issuer,
        "admitted_names": frozenset({"bea", "gpu-lab"}),
    }  # fmt: skip
    return SpaceEnvironment(**{**settings, **changes})


def space_at(origin, issuer, trust=None, demo=None, **changes):
    """Return that Space, with a demo that has no model where none is given."""
    environment = environment_at(origin, issuer, **changes)
    provider = Provider(environment.oidc, origin, trust, reauthenticates=False)
    return Space(environment, provider, demo or FakeDemo(), UNSAVED.__getitem__)
