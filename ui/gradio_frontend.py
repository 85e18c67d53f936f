"""Gradio's front end with one function replaced: the one that finds a component.

At every event, Gradio 6.31 finds each component that any event has changed so far, each by a walk over the whole page: two
thirds of the time in which a tab opens. No component leaves our page (there is no `gr.render`), so each is found once.
"""

import gzip
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gradio
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
_WALK = re.compile(
    r"function (?P<walk>\w+)\((?P<node>\w),(?P<id>\w)\)\{if\((?P=node)\.id===(?P=id)\)return (?P=node);"
    r"if\((?P=node)\.children\)for\(let (?P<child>\w) of (?P=node)\.children\)"
    r"\{let (?P=node)=(?P=walk)\((?P=child),(?P=id)\);if\((?P=node)\)return (?P=node)\}return null\}"
)
_REMEMBERED = (
    "function {walk}(root,id){{let known=({walk}.known??=new WeakMap).get(root);known||{walk}.known.set(root,known=new Map);"
    "let found=known.get(id)??null;return found===null&&(found={walk}_whole(root,id))&&known.set(id,found),found}}"
    "function {walk}_whole(root,id){{if(root.id===id)return root;for(let child of root.children??[])"
    "{{let found={walk}_whole(child,id);if(found)return found}}return null}}"
)


class FrontEnd(NamedTuple):
    """The module of Gradio's that is served changed."""

    path: str  # below the page's address
    body: bytes
    compressed: bytes
    etag: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for it."""
        asked = Headers(scope=scope)
        headers = {"ETag": self.etag, "Vary": "Accept-Encoding"}
        if asked.get("if-none-match") == self.etag:
            answer = Response(status_code=304, headers=headers)
        elif "gzip" in asked.get("accept-encoding", ""):
            answer = Response(
                self.compressed, headers={**headers, "Content-Encoding": "gzip"}, media_type="text/javascript"
            )
        else:
            answer = Response(self.body, headers=headers, media_type="text/javascript")
        await answer(scope, receive, send)


@cache
def quick_front_end() -> FrontEnd | None:
    """Return the changed module; None where this Gradio's has no such function, and is served as it is."""
    for file in sorted(_ASSETS.glob("core-*.js")):
        script, changes = _WALK.subn(
            lambda walk: _REMEMBERED.format(walk=walk["walk"]), file.read_text(encoding="utf-8")
        )
        if changes == 1:
            body = script.encode()
            return FrontEnd(
                f"/assets/{file.name}", body, gzip.compress(body), f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            )
    return None
