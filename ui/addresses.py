"""Addresses of the page: the tab in front and what is in hand there, such as `/chat/RUN`. The script `access` writes them."""

import re

from starlette.datastructures import Headers
from starlette.types import Scope

_ADDRESS = re.compile(r"/(model|data|method|train|chat|export|runs|lab)(?:/([^/\0]{1,200}(?:/[^/\0]{1,100})?))?")


def parse_address(path: str) -> tuple[str, str]:
    """Return tab and name of an address: a dataset, a run, or another person's as `owner/run`. Both are empty for other paths.

    The name is a client's: look it up before you trust it.
    """
    match = _ADDRESS.fullmatch(path)
    return (match[1], match[2] or "") if match is not None else ("", "")


def opens_page(scope: Scope) -> bool:
    """Return whether a browser opens an address of the page."""
    is_read = scope["method"] in ("GET", "HEAD") and "text/html" in Headers(scope=scope).get("accept", "")
    return is_read and parse_address(scope["path"])[0] != ""
