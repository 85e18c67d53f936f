"""A Hugging Face Hub small enough for tests: it lists and sends files, refuses as told, and counts what it is asked."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from engine.serve.guard import bound_socket

COMMIT = "a" * 40
NEXT_COMMIT = "b" * 40


class FakeHub:
    """Serves repositories on loopback; use as a context manager.

    Attributes:
        repositories: Files by repository id and name.
        refusals: Repository id → (HTTP status, X-Error-Code).
        commits: Branch or tag → commit.
        asked: How often each kind of request came: info, tree, head, get, search.
        lost: Names of files that are listed, but not given.
        gated: Repositories that are given to those who send this fake's `token` alone.
        lists_gated: Whether all others learn which files those have, as from the real Hub.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Mapping[str, bytes]] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.commits = {"main": COMMIT}
        self.requests: Counter[str] = Counter()
        self.queries: list[dict[str, list[str]]] = []
        self.tokens: set[str] = set()
        self.lost: set[str] = set()
        self.gated: set[str] = set()
        self.lists_gated = False
        self.token = "hf_secret"
        self._counting = threading.Lock()  # guards `requests`: files are fetched side by side
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def log_message(self, *_: object) -> None:
                pass

        self._place = bound_socket("127.0.0.1", 0)  # kept: where it has ended, no other server comes to answer
        self._server = ThreadingHTTPServer(self._place.getsockname(), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        url = urlsplit(request.path)
        if token := request.headers.get("Authorization"):
            self.tokens.add(token)
        if url.path == "/api/models":
            self._count("search")
            self.queries.append(parse_qs(url.query))
            result = [{"id": name, **json.loads(files["search.json"])} for name, files in self.repositories.items()]
            _send_json(request, result)
            return
        parts = url.path.strip("/").split("/")
        if parts[0] == "datasets":
            del parts[0]
        if parts[:2] in (["api", "models"], ["api", "datasets"]):
            self._answer_api("/".join(parts[2:4]), parts[4:], request)
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._answer_file("/".join(parts[:2]), "/".join(parts[4:]), request, with_body=with_body)
        else:
            _send_refusal(request, 404, "RepoNotFound")

    def _answer_api(self, repository: str, rest: list[str], request: BaseHTTPRequestHandler) -> None:
        if repository in self.refusals:
            _send_refusal(request, *self.refusals[repository])
            return
        if not self.lists_gated and self._is_closed_to(request, repository):
            _send_refusal(request, 401, "GatedRepo")
            return
        if repository not in self.repositories:
            _send_refusal(request, 404, "RepoNotFound")
            return
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.commits.get(revision, revision if revision in self.commits.values() else None)
        if commit is None:
            _send_refusal(request, 404, "RevisionNotFound")
            return
        files = self.repositories[repository]
        if rest[:1] == ["tree"]:
            self._count("tree")
            _send_json(
                request,
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                    for name, content in files.items()
                ],
            )
        else:
            self._count("info")
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            _send_json(request, {"id": repository, "sha": commit, "siblings": siblings})

    def _count(self, kind: str) -> None:
        with self._counting:
            self.requests[kind] += 1

    def _is_closed_to(self, request: BaseHTTPRequestHandler, repository: str) -> bool:
        return repository in self.gated and request.headers.get("Authorization") != f"Bearer {self.token}"

    def _answer_file(self, repository: str, name: str, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        content = self.repositories.get(repository, {}).get(name)
        if repository in self.refusals:
            _send_refusal(request, *self.refusals[repository])
            return
        if self._is_closed_to(request, repository):
            _send_refusal(request, 401, "GatedRepo")
            return
        if content is None or name in self.lost:
            _send_refusal(request, 404, "EntryNotFound")
            return
        self._count("get" if with_body else "head")
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", f'"{_etag(content)}"')
        request.send_header("X-Repo-Commit", request.path.partition("/resolve/")[2].split("/")[0])
        request.end_headers()
        if with_body:
            request.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _send_json(request: BaseHTTPRequestHandler, value: object) -> None:
    body = json.dumps(value).encode()
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def _send_refusal(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    request.send_response(status)
    if code:
        request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()
