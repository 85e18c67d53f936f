"""Models and datasets that others published: listed, sent, gated or refused."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from tests.hub.server import NAME, Answer, HubRequest, HubServer, error_answer, git_oid

COMMIT = "a" * 40
NEXT_COMMIT = "b" * 40


class PublishedHub(HubServer):
    """Serves files of repositories to everyone.

    Attributes:
        repositories: Files by repository id and name.
        refusals: Repository id → (HTTP status, X-Error-Code).
        commits: Branch or tag → commit.
        requests: Files also count as `get` and `head`.
        paths: Every path that was asked for.
        lost: Names of files that are listed, but not given.
        gated: Repositories that are given to those who send this hub's `token` alone.
        lists_gated: Whether all others learn which files those have, as from the real Hub.
    """

    _ID = rf"/api/(?:models|datasets)/({NAME})"
    routes: ClassVar = [
        (r"/api/models", "search"),
        (rf"{_ID}(?:/revision/([^/]+))?", "info"),
        (rf"{_ID}/tree/([^/]+)(?:/(.+))?", "tree"),
        (rf"{_ID}/paths-info/([^/]+)", "paths"),
        (rf"/(?:datasets/)?({NAME})/resolve/([^/]+)/(.+)", "file"),
        (r"(.*)", "other"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, Mapping[str, bytes]] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.commits = {"main": COMMIT}
        self.queries: list[dict[str, list[str]]] = []
        self.paths: list[str] = []
        self.tokens: set[str] = set()  # authorization headers
        self.lost: set[str] = set()
        self.gated: set[str] = set()
        self.lists_gated = False
        self.token = "hf_secret"

    def _refusal(self, request: HubRequest) -> Answer | None:
        self.paths.append(request.path)
        if request.token:
            self.tokens.add(f"Bearer {request.token}")
        if request.step == "search":
            return None
        if request.step == "other":
            return error_answer("RepoNotFound")
        if request.name in self.refusals:
            status, code = self.refusals[request.name]
            return error_answer(code, status=status)
        is_listing = request.step != "file" and self.lists_gated
        if request.name in self.gated and request.token != self.token and not is_listing:
            return error_answer("GatedRepo", status=401)
        if request.name not in self.repositories:
            return error_answer("EntryNotFound" if request.step == "file" else "RepoNotFound")
        if request.step in ("info", "tree") and self._commit_of(request) is None:
            return error_answer("RevisionNotFound")
        return None

    def _commit_of(self, request: HubRequest) -> str | None:
        revision = request.match[2] or "main"
        return self.commits.get(revision, revision if revision in self.commits.values() else None)

    def _search(self, request: HubRequest) -> Answer:
        self.queries.append(request.query)
        return 200, [{"id": name, **json.loads(files["search.json"])} for name, files in self.repositories.items()]

    def _info(self, request: HubRequest) -> Answer:
        files = self.repositories[request.name]
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        return 200, {"id": request.name, "sha": self._commit_of(request), "siblings": siblings}

    def _entries(self, request: HubRequest) -> list[dict[str, Any]]:
        files = self.repositories[request.name]
        folders = sorted({name.rpartition("/")[0] for name in files if "/" in name})
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)} for name, data in files.items()
        ]
        return entries + [{"type": "directory", "path": name, "oid": git_oid(name.encode())} for name in folders]

    def _tree(self, request: HubRequest) -> Answer:
        folder = request.match[3]
        return 200, [
            entry for entry in self._entries(request) if not folder or entry["path"].rpartition("/")[0] == folder
        ]

    def _paths(self, request: HubRequest) -> Answer:
        paths = request.json()["paths"]
        return 200, [entry for entry in self._entries(request) if entry["path"] in paths]

    def _file(self, request: HubRequest) -> Answer:
        name = request.match[3]
        content = self.repositories[request.name].get(name)
        if content is None or name in self.lost:
            return error_answer("EntryNotFound")
        self.requests[request.method.lower()] += 1
        headers = {"ETag": f'"{git_oid(content)}"', "X-Repo-Commit": request.match[2], "Content-Type": "text/plain"}
        if (part := request.headers.get("Range")) is None:
            return 200, content, headers
        first, _, last = part.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content)) + 1, len(content))
        return 206, content[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
