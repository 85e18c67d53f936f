"""Who sent a request of the Lab tab."""

import gradio as gr

from ui.backend.lab import Caller
from ui.front.gate import COOKIE


def caller_of(request: gr.Request) -> Caller:
    """Return the session and the address of a request."""
    address = request.client.host if request.client else ""
    return Caller(request.cookies.get(COOKIE, ""), address)
