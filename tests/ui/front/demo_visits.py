"""Visits of people without an account to the demo of a Space."""

import asyncio

import httpx
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from loratory.ui.front.demo import DemoPages
from loratory.ui.views.demo import ASK

SIGN_IN = "https://ann-loratory.hf.space/sign-in"
DUPLICATE = "https://huggingface.co/spaces/ann/loratory?duplicate=true"


def app_of(demo, why="", **parts):
    """Return the demo as a Space serves it, with its page also at the root."""
    pages = DemoPages(demo, DUPLICATE, SIGN_IN, **parts)

    async def front(request):
        return await pages.welcome(request, why)

    return Starlette(routes=[Route("/", front), *pages.routes()])


def visit(demo, why="", **parts):
    """Return the browser of a person without an account."""
    return TestClient(app_of(demo, why, **parts), client=("203.0.113.7", 1))


def send_question(client, prompt="What does r do?", **headers):
    """Send a question as the form of the page does."""
    return client.post(ASK, data={"prompt": prompt}, headers=headers)


def visit_at_once(app, talk):
    """Return what `talk` does with a client whose requests run at the same time."""

    async def run():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            return await talk(client)

    return asyncio.run(run())
