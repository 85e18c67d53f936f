"""A person's own repositories, as far as pushing goes: large files, branches, commits; nothing stays of one that did not finish."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from tests.hub.server import ACCOUNT, NAME, Answer, HubRequest, HubServer, error_answer, git_oid, sha256


class Blob(NamedTuple):
    """A file in a repository."""

    content: bytes
    is_large: bool

    @property
    def oid(self) -> str:
        return sha256(self.content) if self.is_large else git_oid(self.content)


@dataclass
class StoredRepository:
    """What the Hub holds under one name."""

    private: bool
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, Blob]] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list)

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return {name: blob.content for name, blob in self.commits[self.branches[branch]].items()}


class OwnHub(HubServer):
    """Takes repositories.

    Attributes:
        repositories: By owner/name.
        put: Names (sha256) of large files that arrived whole, in order.
        token: The only one that is accepted.
        unauthorized_uploads: Tokens that came where none belongs.
    """

    _ID = rf"/api/(?:models|spaces)/({NAME})"
    routes: ClassVar = [
        (r"/api/whoami-v2", "whoami"),
        (r"/api/repos/create", "create"),
        (r"/api/validate-yaml", "yaml"),
        (rf"{_ID}(?:/revision/(.+))?", "info"),
        (rf"{_ID}/refs", "refs"),
        (rf"{_ID}/branch/(.+)", "branch"),
        (rf"{_ID}/preupload/(.+)", "preupload"),
        (rf"{_ID}/commit/(.+)", "commit"),
        (r"/.+\.git/info/lfs/objects/batch", "batch"),
        (rf"{_ID}/xet-write-token/.+", "xet"),
        (r"/large/([0-9a-f]{64})", "put"),
        (r"(.*)", "other"),
    ]
    open_steps = frozenset({"put"})

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, StoredRepository] = {}
        self.large: dict[str, bytes] = {}
        self.put: list[str] = []
        self.unauthorized_uploads: list[str] = []

    @property
    def token(self) -> str:
        (token,) = self.accounts
        return token

    @token.setter
    def token(self, token: str) -> None:
        self.accounts = {token: ACCOUNT}

    def _create(self, request: HubRequest) -> Answer:
        payload = request.json()
        owner = payload.get("organization") or ACCOUNT
        name = f"{owner}/{payload['name']}"
        if owner.lower() not in (ACCOUNT, "lab"):
            return 403, {"error": f"You don't have the rights to create a model under the namespace {owner}"}
        exists = name in self.repositories
        if not exists:
            private = payload.get("visibility") == "private" or payload.get("private") is True
            self.repositories[name] = StoredRepository(private)
        return (409 if exists else 200), {"url": f"{self.address}/{name}"}

    def _info(self, request: HubRequest) -> Answer:
        repository, revision = self.repositories.get(request.name), request.match[2] or "main"
        if repository is None:
            return error_answer("RepoNotFound")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return error_answer("RevisionNotFound", "Invalid rev id")
        siblings = []
        for file, blob in repository.commits[commit].items():
            size = len(blob.content)
            lfs = {"lfs": {"sha256": blob.oid, "size": size, "pointerSize": 134}} if blob.is_large else {}
            siblings.append({"rfilename": file, "size": size, "blobId": git_oid(blob.content), **lfs})
        return 200, {"id": request.name, "sha": commit, "private": repository.private, "siblings": siblings}

    def _refs(self, request: HubRequest) -> Answer:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in self.repositories[request.name].branches.items()
        ]
        return 200, {"branches": branches, "converts": [], "tags": []}

    def _branch(self, request: HubRequest) -> Answer:
        branches = self.repositories[request.name].branches
        if request.match[2] in branches:
            return 409, {"error": "Reference already exists"}
        branches[request.match[2]] = branches["main"]
        return 200, {}

    def _yaml(self, request: HubRequest) -> Answer:
        if not request.json()["content"].startswith("---\n"):
            return 400, {"errors": [{"message": "empty or missing yaml metadata"}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _preupload(self, request: HubRequest) -> Answer:
        repository = self.repositories[request.name]
        there = repository.commits[repository.branches[request.match[2]]]
        files = []
        for payload in request.json()["files"]:
            blob = there.get(payload["path"])
            is_large = payload["path"].endswith((".safetensors", "tokenizer.json", ".whl"))
            mode = {"uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            files.append({"path": payload["path"], **mode, "oid": None if blob is None else blob.oid})
        return 200, {"files": files}

    def _batch(self, request: HubRequest) -> Answer:
        objects = []
        for payload in request.json()["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.address}/large/{payload['oid']}"}}}
            is_missing = payload["oid"] not in self.large
            objects.append({"oid": payload["oid"], "size": payload["size"], **(upload if is_missing else {})})
        return 200, {"transfer": "basic", "objects": objects}

    def _put(self, request: HubRequest) -> Answer:
        if request.token:
            self.unauthorized_uploads.append(request.token)
        if sha256(request.body) != request.name:
            return 400, {"error": "checksum"}
        self.large[request.name] = request.body
        self.put.append(request.name)
        return 200, {}

    def _xet(self, request: HubRequest) -> Answer:
        return 404, {"error": "there is no such storage here", "code": ""}

    def _commit(self, request: HubRequest) -> Answer:
        repository, branch = self.repositories[request.name], request.match[2]
        header, *changes = (json.loads(line) for line in request.body.splitlines())
        before = repository.branches[branch]
        if header["value"].get("parentCommit") not in (None, before):
            return 412, {"error": "the branch has moved"}
        files = dict(repository.commits[before])
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), is_large=False)
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.large:
                    return 400, {"error": "a large file is missing"}
                files[value["path"]] = Blob(self.large[value["oid"]], is_large=True)
            else:
                del files[value["path"]]
        commit = hashlib.sha1(before.encode() + request.body).hexdigest()
        repository.commits[commit] = files
        repository.branches[branch] = commit
        repository.messages.append(header["value"]["summary"])
        return 200, {"commitUrl": f"{self.address}/{request.name}/commit/{commit}", "commitOid": commit}
