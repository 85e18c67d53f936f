"""What a browser may do on the page, how large requests and answers are, and which of Gradio's routes are not offered."""

import asyncio
import gzip
import hashlib
import re
from base64 import b64encode
from contextlib import nullcontext
from functools import cache
from itertools import accumulate
from pathlib import Path

import gradio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loratory.engine.errors import StorageError
from loratory.ui.addresses import opens_page
from loratory.ui.backend.transfers import Transfers
from loratory.ui.components import module_text
from loratory.ui.theme import ICON

_LARGEST_BODY_BYTES = 16_000_000  # of an event: a form, a conversation
_MOST_VALUES = 50_000  # of its JSON, which takes memory and time by their number, not by its bytes
_DEEPEST_VALUE = 100
_LARGE_BODY_BYTES = 250_000  # read one at a time for each page, and looked through in a thread
_JSON_MARKS = b",[]{}"
_NO_MARKS = bytes(set(range(256)) - set(_JSON_MARKS))
# They copy a page's values into a file, fetch any address, or list what other people ran.
_NOT_OFFERED = ("/gradio_api/deep_link", "/gradio_api/proxy=", "/gradio_api/file=http", "/gradio_api/runs")
_COMPRESSED_FROM_BYTES = 1_000  # below that the answer fits a packet or two anyway
_GZIP_LEVEL = 4  # 84 kB instead of 77 kB of the page's 905 kB, in two thirds of the time
_INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
_UNWATCHED = b"<script>" + (Path(__file__).parent / "assets/unwatched.js").read_bytes() + b"</script>"
# Finds a component by a walk over the whole page, in the one script of Gradio's front end that has it.
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
_TOO_LARGE = f"A request may be at most {_LARGEST_BODY_BYTES // 1_000_000} MB. Shorten what was typed or opened."


class PagePolicy:
    """Refuses what is too large before it is read, and answers every address of the page with it and its content security policy.

    Gradio builds its components with `new Function` and styles elements in place, so both stay allowed. Its inline
    scripts are allowed by their hashes: scripts in text of a model, a dataset or a file are not run.
    """

    def __init__(self, app: ASGIApp, transfers: Transfers) -> None:
        self._app = app
        self._transfers = transfers
        self._large_body = asyncio.Lock()
        self._front_end, self._script = quick_front_end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length_text = Headers(scope=scope).get("content-length", "")
        length = int(length_text) if length_text.isascii() and length_text.isdigit() else None
        if scope["path"].startswith(_NOT_OFFERED):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
        elif scope["method"] == "POST" and length is None:
            refusal = PlainTextResponse("The request has no Content-Length. Send it with the header.", 411)
            await refusal(scope, receive, send)
        elif scope["path"].rstrip("/") == "/gradio_api/upload":
            await self._receive_upload(length or 0, scope, receive, send)
        elif (length or 0) > _LARGEST_BODY_BYTES:
            await PlainTextResponse(_TOO_LARGE, 413)(scope, receive, send)
        elif scope["method"] == "POST":
            async with self._large_body if (length or 0) > _LARGE_BODY_BYTES else nullcontext():
                await self._receive_event(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send, compress="gzip" in Headers(scope=scope).get("accept-encoding", ""))
        if opens_page(scope):
            answer.base = "../" * (scope["path"].count("/") - 1) or "./"
            scope = {**scope, "path": "/", "raw_path": b"/"}
        is_front_end = bool(self._front_end) and scope["path"].endswith(self._front_end)
        if text := self._script if is_front_end else module_text(scope["path"]):
            headers = {"Cache-Control": "private, max-age=3600"}
            await Response(text, headers=headers, media_type="text/javascript")(scope, receive, answer)
        else:
            await self._app(scope, receive, answer)

    async def _receive_event(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        is_large = len(body) > _LARGE_BODY_BYTES
        problem = await asyncio.to_thread(json_problem, body) if is_large else json_problem(body)
        if problem:
            await PlainTextResponse(problem, 413)(scope, receive, send)
            return
        messages = iter([{"type": "http.request", "body": body}])

        async def receive_again() -> Message:
            return next(messages, None) or await receive()

        await self._answer(scope, receive_again, send)

    async def _receive_upload(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        instead = "Copy it to this computer and give its path."
        around = 100_000  # bytes of the request that are not the file
        file_bytes = max(0, length - around)
        try:
            await asyncio.to_thread(self._transfers.require_quota, file_bytes)
            with self._transfers.room_for(file_bytes, instead=instead):
                await self._app(scope, receive, send)
        except StorageError as error:
            await PlainTextResponse(str(error), 413)(scope, receive, send)


@cache
def quick_front_end() -> tuple[str, str]:
    """Return the path and the text of the script of Gradio's front end in which each component is found once.

    At every event, Gradio 6.31 finds each component that any event has changed so far, each by a walk over the whole page: two
    thirds of the time in which a tab opens. No component leaves our page, as there is no `gr.render`. Both are empty where this
    Gradio has no such function; its own script is served then.
    """
    for file in sorted((Path(gradio.__file__).parent / "templates" / "frontend" / "assets").glob("core-*.js")):
        text = file.read_text(encoding="utf-8")
        script, changes = _WALK.subn(lambda walk: _REMEMBERED.format(walk=walk["walk"]), text)
        if changes == 1:
            return f"/assets/{file.name}", script
    return "", ""


def json_problem(body: bytes) -> str:
    """Return why a body is refused before its JSON is parsed, empty if it is not; makes none of its values."""
    if b"\0" in body:
        return "A request must be UTF-8. Send it in this encoding."  # of others, strings would not be found here
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') <= 2 * _MOST_VALUES:
        body = b"".join(body.split(b'"')[::2])  # what is outside of strings
    marks = body.translate(None, _NO_MARKS)
    values = marks.count(b",") + marks.count(b"[") + marks.count(b"{")
    if values > _MOST_VALUES:
        return f"A request may hold at most {_MOST_VALUES:,} values. Shorten what was typed or opened."
    depths = accumulate((mark in b"[{") - (mark in b"]}") for mark in marks)
    if max(depths, default=0) > _DEEPEST_VALUE:
        return f"Values in a request may be nested at most {_DEEPEST_VALUE} deep. Send them flat."
    return ""


class _Answer:
    """Holds an HTML document until its inline scripts are known, and compresses it, answers of events and the changed script.

    Gradio 6.31 compresses only what has the name of a file, and the document has most of a first visit's bytes.
    """

    def __init__(self, send: Send, *, compress: bool) -> None:
        self._send = send
        self._compress = compress
        self._kind = ""  # of the answer, if it is one that is held
        self._start: Message | None = None
        self._body = b""
        self.base = "./"  # of the document's relative addresses

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(scope=message)
            kind = headers.get("content-type", "").partition(";")[0]
            if kind in ("text/html", "application/json", "text/javascript") and "content-encoding" not in headers:
                self._kind, self._start = kind, message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            is_document, is_whole = self._kind == "text/html", not message.get("more_body")
            if is_document and not is_whole:
                return
            start, self._start = self._start, None
            headers = MutableHeaders(scope=start)
            if is_document:
                # Gradio 6.31 adds to the head by a script, when the browser has asked for its icon already.
                self._body = self._body.replace(b"<head>", b"<head>" + ICON.encode(), 1)
                self._body = self._body.replace(b"</head>", _UNWATCHED + b"</head>", 1)
                self._body = self._body.replace(b'<base href="./"', b'<base href="%s"' % self.base.encode(), 1)
                headers["Content-Security-Policy"] = policy_for(self._body)
            if self._compress and is_whole and len(self._body) >= _COMPRESSED_FROM_BYTES:
                self._body = gzip.compress(self._body, _GZIP_LEVEL)
                headers["Content-Encoding"] = "gzip"
                headers.add_vary_header("Accept-Encoding")
            if is_whole and self._body:
                headers["Content-Length"] = str(len(self._body))
            await self._send(start)
            message = {**message, "body": self._body}
        await self._send(message)


def policy_for(document: bytes) -> str:
    """Return the content security policy of an HTML document, with the hashes of its own inline scripts."""
    scripts = dict.fromkeys(_INLINE_SCRIPT.findall(document))
    hashes = " ".join(f"'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
    return (
        "default-src 'self'; "
        f"script-src 'self' 'unsafe-eval' {hashes}; "
        "style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; "
        "font-src 'self' data:; "
        "connect-src 'self'; "
        "object-src 'none'; "
        "base-uri 'self'; "
        "form-action 'self'; "
        "frame-src 'none'; "
        "frame-ancestors 'self'"
    )
