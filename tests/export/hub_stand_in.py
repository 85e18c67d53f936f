"""A Hugging Face Hub small enough for tests, as far as pushing goes: accounts, repositories, large files, commits.

It fails on demand, remembers what it was sent, and keeps nothing of a commit that it did not finish.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from engine.serve.guard import bound_socket

TOKEN = "hf_CanaryThatMustNeverBeSeenAnywhere42"
ACCOUNT = "ada"

Step = str  # one of the routes below


class Blob(NamedTuple):
    """A file in a repository."""

    content: bytes
    is_large: bool


@dataclass
class StoredRepository:
    """What the Hub holds under one name."""

    private: bool
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, Blob]] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list)

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return {name: blob.content for name, blob in self.commits[self.branches[branch]].items()}


@dataclass
class Fault:
    """What goes wrong at a step, so many times.

    `status` answers instead of the Hub; `reset` cuts the connection before anything is done, `lost` after it was done.
    """

    step: Step
    what: int | Literal["reset", "lost"]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class HubStandIn:
    """Serves on loopback; use as a context manager.

    Attributes:
        repositories: By owner/name.
        faults: Taken one after the other, each as often as it says.
        asked: How often each step was asked for.
        put: Names (sha256) of large files that arrived whole, in order.
        token: The only one that is accepted.
    """

    routes: ClassVar[list[tuple[str, Step]]] = [
        (r"/api/whoami-v2", "whoami"),
        (r"/api/repos/create", "create"),
        (r"/api/validate-yaml", "yaml"),
        (r"/api/(models|spaces)/[^/]+/[^/]+(/revision/.+)?", "info"),
        (r"/api/models/[^/]+/[^/]+/refs", "refs"),
        (r"/api/models/[^/]+/[^/]+/branch/.+", "branch"),
        (r"/api/(models|spaces)/[^/]+/[^/]+/preupload/.+", "preupload"),
        (r"/api/(models|spaces)/[^/]+/[^/]+/commit/.+", "commit"),
        (r"/.+\.git/info/lfs/objects/batch", "batch"),
        (r"/api/models/[^/]+/[^/]+/xet-write-token/.+", "xet"),
        (r"/large/[0-9a-f]{64}", "put"),
    ]  # of paths; the first that matches holds

    def __init__(self) -> None:
        self.repositories: dict[str, StoredRepository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.put: list[str] = []
        self.token = TOKEN
        self.organizations = ("lab",)
        self.unauthorized_uploads: list[str] = []  # authorization headers that came where none belongs
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536  # head and body in one packet: the other side waits 40 ms between two

            def do_GET(self) -> None:
                hub._serve(self)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names of the base class

            def log_message(self, *_: object) -> None:
                pass

        self._place = bound_socket("127.0.0.1", 0)  # kept: where it has ended, no other server comes to answer
        self._server = ThreadingHTTPServer(self._place.getsockname(), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the Hub's library ask this stand-in, in one way."""
        monkeypatch.setattr(constants, "ENDPOINT", self.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        step = next((step for pattern, step in self.routes if re.fullmatch(pattern, path)), "other")
        length = int(request.headers.get("Content-Length") or 0)
        self.requests[step] += 1
        fault = next((fault for fault in self.faults if fault.step == step and fault.times > 0), None)
        if fault is not None:
            fault.times -= 1
            if fault.what == "reset":
                request.rfile.read(length // 2)
                _close_connection(request)
                return
        body = request.rfile.read(length)
        if fault is not None and isinstance(fault.what, int):
            _send(request, fault.what, {"error": f"refused with {self.token}"}, fault.headers)
            return
        if step == "put":
            if request.headers.get("Authorization"):
                self.unauthorized_uploads.append(request.headers["Authorization"])
        elif request.headers.get("Authorization") != f"Bearer {self.token}":
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            _send(request, 401, {"error": "Invalid credentials in Authorization header"}, message)
            return
        status, answer = self._answer(step, path, body, request.command)
        if fault is not None:
            _close_connection(request)
            return
        headers = {"X-Error-Code": str(answer["code"])} if status == 404 and isinstance(answer, dict) else {}
        _send(request, status, answer, headers)

    def _answer(self, step: Step, path: str, body: bytes, method: str) -> tuple[int, object]:
        return getattr(self, f"_{step}")(path, body)

    def _other(self, path: str, _: bytes) -> tuple[int, object]:
        return 404, {"error": f"there is no {path} here", "code": ""}

    def _whoami(self, _: str, __: bytes) -> tuple[int, object]:
        return 200, {"type": "user", "name": ACCOUNT, "orgs": [{"name": name} for name in self.organizations]}

    def _create(self, _: str, body: bytes) -> tuple[int, object]:
        payload = json.loads(body)
        owner = payload.get("organization") or ACCOUNT
        name = f"{owner}/{payload['name']}"
        if owner.lower() not in (ACCOUNT, *self.organizations):
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner}"}
        exists = name in self.repositories
        if not exists:
            private = payload.get("visibility") == "private" or payload.get("private") is True
            self.repositories[name] = StoredRepository(private)
        return (409 if exists else 200), {"url": f"{self.address}/{name}"}

    def _info(self, path: str, _: bytes) -> tuple[int, object]:
        match = re.fullmatch(r"/api/(?:models|spaces)/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        assert match is not None
        name, revision = match[1], match[2] or "main"
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return 404, {"error": "Invalid rev id", "code": "RevisionNotFound"}
        siblings = []
        for file, blob in repository.commits[commit].items():
            sibling: dict[str, object] = {
                "rfilename": file,
                "size": len(blob.content),
                "blobId": _git_oid(blob.content),
            }
            if blob.is_large:
                sibling["lfs"] = {"sha256": _sha256(blob.content), "size": len(blob.content), "pointerSize": 134}
            siblings.append(sibling)
        return 200, {"id": name, "sha": commit, "private": repository.private, "siblings": siblings}

    def _refs(self, path: str, _: bytes) -> tuple[int, object]:
        repository = self.repositories["/".join(path.split("/")[3:5])]
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in repository.branches.items()
        ]
        return 200, {"branches": branches, "converts": [], "tags": []}

    def _branch(self, path: str, _: bytes) -> tuple[int, object]:
        parts = path.split("/")
        repository, name = self.repositories["/".join(parts[3:5])], "/".join(parts[6:])
        if name in repository.branches:
            return 409, {"error": "Reference already exists"}
        repository.branches[name] = repository.branches["main"]
        return 200, {}

    def _yaml(self, _: str, body: bytes) -> tuple[int, object]:
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            return 400, {"errors": [{"message": "empty or missing yaml metadata"}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _preupload(self, path: str, body: bytes) -> tuple[int, object]:
        parts = path.split("/")
        repository, revision = self.repositories["/".join(parts[3:5])], "/".join(parts[6:])
        there = repository.commits[repository.branches[revision]]
        files = []
        for payload in json.loads(body)["files"]:
            blob = there.get(payload["path"])
            is_large = payload["path"].endswith((".safetensors", "tokenizer.json", ".whl"))
            oid = None
            if blob is not None:
                oid = _sha256(blob.content) if blob.is_large else _git_oid(blob.content)
            mode = "lfs" if is_large else "regular"
            files.append({"path": payload["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": files}

    def _batch(self, _: str, body: bytes) -> tuple[int, object]:
        objects = []
        for payload in json.loads(body)["objects"]:
            answer: dict[str, object] = {"oid": payload["oid"], "size": payload["size"]}
            if payload["oid"] not in self.large:
                answer["actions"] = {"upload": {"href": f"{self.address}/large/{payload['oid']}"}}
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}

    def _xet(self, _: str, __: bytes) -> tuple[int, object]:
        return 404, {"error": "there is no such storage here", "code": ""}

    def _put(self, path: str, body: bytes) -> tuple[int, object]:
        oid = path.rpartition("/")[2]
        if _sha256(body) != oid:
            return 400, {"error": "checksum"}
        self.large[oid] = body
        self.put.append(oid)
        return 200, {}

    def _commit(self, path: str, body: bytes) -> tuple[int, object]:
        parts = path.split("/")
        name, branch = "/".join(parts[3:5]), "/".join(parts[6:])
        repository = self.repositories[name]
        lines = [json.loads(line) for line in body.splitlines()]
        before = repository.branches[branch]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, before):
            return 412, {"error": "the branch has moved"}
        files = dict(repository.commits[before])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), is_large=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    return 400, {"error": "a large file is missing"}
                files[value["path"]] = Blob(self.large[value["oid"]], is_large=True)
            else:
                del files[value["path"]]
        commit = hashlib.sha1(before.encode() + body).hexdigest()
        repository.commits[commit] = files
        repository.branches[branch] = commit
        repository.messages.append(header["summary"])
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit}


def _close_connection(request: BaseHTTPRequestHandler) -> None:
    """Reset the connection instead of closing it."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True
    request.connection.close()


def _send(request: BaseHTTPRequestHandler, status: int, value: object, headers: dict[str, str]) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    for name, text in headers.items():
        request.send_header(name, text)
    request.end_headers()
    request.wfile.write(body)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
