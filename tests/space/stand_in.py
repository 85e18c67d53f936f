"""The Hub's Spaces, small enough for tests: strict about what `HfApi` may send, and failing on request."""

import json
import re
from dataclasses import dataclass, field
from typing import ClassVar

import yaml

from tests.export.hub_stand_in import ACCOUNT, Blob, HubStandIn, StoredRepository
from tests.jobs.service import HARDWARE

_NAME = r"[^/]+/[^/]+"
# What each request may hold. Source: huggingface_hub.HfApi, version 2.4.
_KEYS = {
    "create": {
        "name", "organization", "visibility", "type", "sdk", "hardware", "sleepTimeSeconds", "secrets", "variables",
    },
    "secrets": {"key", "value", "description"},
    "variables": {"key", "value", "description"},
    "hardware": {"flavor", "sleepTimeSeconds"},
    "sleeptime": {"seconds"},
    "delete": {"name", "organization", "type"},
}  # fmt: skip


@dataclass
class FakeSpace:
    """What the Hub knows of a Space besides its files."""

    sdk: str
    hardware: str
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    variables: dict[str, dict[str, str]] = field(default_factory=dict)
    sleep_seconds: int | None = None
    requested: str | None = None
    error: str | None = None


class SpacesStandIn(HubStandIn):
    """Serves on loopback; use as a context manager.

    Attributes:
        spaces: By owner/name; their files are in `repositories`.
        stages: That each look at a Space takes one from; the last one stays.
        logs: Lines of a log, by `build` and `run`.
        buckets: Whether each is private, by owner/name.
        has_plan: Of the account; without one, no Space runs on cpu-basic.
    """

    routes: ClassVar = [
        (rf"/api/spaces/{_NAME}/runtime", "runtime"),
        (rf"/api/spaces/{_NAME}/secrets", "secrets"),
        (rf"/api/spaces/{_NAME}/variables", "variables"),
        (rf"/api/spaces/{_NAME}/hardware", "hardware"),
        (rf"/api/spaces/{_NAME}/sleeptime", "sleeptime"),
        (rf"/api/spaces/{_NAME}/logs/(build|run)", "logs"),
        (r"/api/spaces/hardware", "list_hardware"),
        (r"/api/repos/delete", "delete"),
        (rf"/api/buckets/{_NAME}", "bucket"),
        *HubStandIn.routes,
    ]

    def __init__(self) -> None:
        super().__init__()
        self.spaces: dict[str, FakeSpace] = {}
        self.stages = ["RUNNING"]
        self.logs: dict[str, list[str]] = {}
        self.buckets: dict[str, bool] = {}
        self.has_plan = True

    def _answer(self, step: str, path: str, body: bytes, method: str) -> tuple[int, object]:
        if step in _KEYS and body:
            unknown = json.loads(body).keys() - _KEYS[step]
            assert not unknown, f"{step} may not have {unknown}"
        self.method = method
        match = re.match(rf"/api/spaces/({_NAME})(?:/|$)", path)
        if match is not None and step != "list_hardware" and match[1] not in self.spaces:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        status, answer = super()._answer(step, path, body, method)
        if step == "info" and status == 200 and isinstance(answer, dict):
            # The real one has the settings of README.md as `cardData`.
            name = str(answer["id"])
            parts = self.repositories[name].files().get("README.md", b"").decode().split("---\n")
            answer |= {
                "sdk": self.spaces[name].sdk,
                "cardData": yaml.safe_load(parts[1]) if len(parts) > 2 else {},
                "host": f"https://{name.replace('/', '-')}.hf.space",
            }
        return status, answer

    def _create(self, path: str, body: bytes) -> tuple[int, object]:
        payload = json.loads(body)
        assert payload["type"] == "space"
        assert payload["sdk"] in ("docker", "gradio")
        name = f"{payload['organization'] or ACCOUNT}/{payload['name']}"
        is_free = (payload["sdk"], payload["hardware"]) == (
            "gradio",
            "zero-a10g",
        )  # which the list with prices leaves out
        if payload["hardware"] not in [one["name"] for one in HARDWARE] and not is_free:
            return 400, {"error": f"Invalid hardware {payload['hardware']}"}
        if not self.has_plan and not is_free and name not in self.spaces:
            return 402, {"error": "Subscribe to PRO to create Spaces on cpu-basic"}
        status, answer = super()._create(path, body)
        if status == 200:
            listing = {key: {one["key"]: one for one in payload.get(key) or ()} for key in ("secrets", "variables")}
            self.spaces[name] = FakeSpace(
                payload["sdk"], payload["hardware"], **listing, sleep_seconds=payload.get("sleepTimeSeconds")
            )
        return status, answer

    def _delete(self, _: str, body: bytes) -> tuple[int, object]:
        payload = json.loads(body)
        assert self.method == "DELETE"
        assert payload["type"] == "space"
        name = f"{payload['organization']}/{payload['name']}"
        if self.spaces.pop(name, None) is None:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        del self.repositories[name]
        return 200, {}

    def _runtime(self, path: str, _: bytes) -> tuple[int, object]:
        name = _name_in(path)
        space = self.spaces[name]
        stage = self.stages.pop(0) if len(self.stages) > 1 else self.stages[0]
        commit = self.repositories[name].branches["main"]
        return 200, {
            "stage": stage,
            "hardware": {"current": space.hardware, "requested": space.requested or space.hardware},
            "gcTimeout": space.sleep_seconds,
            "storage": None,
            "sha": commit,
            **({"errorMessage": space.error} if space.error else {}),
        }

    def _secrets(self, path: str, body: bytes) -> tuple[int, object]:
        return self._add_names(self.spaces[_name_in(path)].secrets, body, shows_values=False)

    def _variables(self, path: str, body: bytes) -> tuple[int, object]:
        return self._add_names(self.spaces[_name_in(path)].variables, body, shows_values=True)

    def _add_names(self, there: dict[str, dict[str, str]], body: bytes, *, shows_values: bool) -> tuple[int, object]:
        payload = json.loads(body) if body else {}
        if self.method == "POST":
            there[payload["key"]] = payload
        elif self.method == "DELETE" and there.pop(payload["key"], None) is None:
            return 404, {"error": "no such key", "code": "EntryNotFound"}
        shown = {"key", "value", "description"} if shows_values else {"key", "description"}
        return 200, {key: {name: text for name, text in one.items() if name in shown} for key, one in there.items()}

    def _hardware(self, path: str, body: bytes) -> tuple[int, object]:
        payload, space = json.loads(body), self.spaces[_name_in(path)]
        space.requested = payload["flavor"]
        space.sleep_seconds = payload.get("sleepTimeSeconds", space.sleep_seconds)
        return self._runtime(path, b"")

    def _sleeptime(self, path: str, body: bytes) -> tuple[int, object]:
        self.spaces[_name_in(path)].sleep_seconds = json.loads(body)["seconds"]
        return self._runtime(path, b"")

    def _list_hardware(self, _: str, __: bytes) -> tuple[int, object]:
        return 200, HARDWARE

    def _logs(self, path: str, _: bytes) -> tuple[int, object]:
        lines = self.logs.get(path.rpartition("/")[2], [])
        events = (json.dumps({"data": line, "timestamp": "2026-01-01T00:00:00.000Z"}) for line in lines)
        return 200, "".join(f"data: {event}\n\n" for event in events).encode()

    def _bucket(self, path: str, body: bytes) -> tuple[int, object]:
        name = path.removeprefix("/api/buckets/")
        if self.method == "POST":
            exists = name in self.buckets
            self.buckets.setdefault(name, json.loads(body).get("visibility") == "private")
            return (409 if exists else 200), {"url": f"{self.address}/buckets/{name}"}
        if name not in self.buckets:
            return 404, {"error": "Bucket not found", "code": "RepoNotFound"}
        about = {"id": name, "private": self.buckets[name], "createdAt": "2026-01-01T00:00:00.000Z"}
        if self.method == "DELETE":
            del self.buckets[name]
        return 200, {**about, "size": 0, "totalFiles": 0}


def _name_in(path: str) -> str:
    return "/".join(path.split("/")[3:5])


def with_space(stand_in: SpacesStandIn, name: str, files: dict[str, bytes] | None = None, sdk: str = "docker") -> None:
    """Let a Space be there already."""
    repository = StoredRepository(private=True)
    repository.commits["0" * 40] = {file: Blob(data, is_large=False) for file, data in (files or {}).items()}
    stand_in.repositories[name] = repository
    stand_in.spaces[name] = FakeSpace(sdk, "cpu-basic")
