"""Spaces of the Hub, strict about what `HfApi` may send."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from tests.hub.jobs import HARDWARE
from tests.hub.repositories import Blob, OwnHub, StoredRepository
from tests.hub.server import ACCOUNT, NAME, Answer, HubRequest, error_answer, log_events

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
_FREE = "gradio", "zero-a10g"  # which the list with prices leaves out


@dataclass
class FakeSpace:
    """What the Hub knows of a Space besides its files."""

    sdk: str
    hardware: str
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    variables: dict[str, dict[str, str]] = field(default_factory=dict)
    sleep_seconds: int | None = None
    requested_hardware: str | None = None
    error: str | None = None


class SpacesHub(OwnHub):
    """Makes and runs Spaces.

    Attributes:
        spaces: By owner/name; their files are in `repositories`.
        stages: That each look at a Space takes one from; the last one stays.
        logs: Lines of a log, by `build` and `run`.
        buckets: Whether each is private, by owner/name.
        has_plan: Of the account; without one, no Space runs on cpu-basic.
    """

    routes: ClassVar = [
        *(
            (rf"/api/spaces/({NAME})/{step}", step)
            for step in ("runtime", "secrets", "variables", "hardware", "sleeptime")
        ),
        (rf"/api/spaces/({NAME})/logs/(build|run)", "logs"),
        (r"/api/spaces/hardware", "list_hardware"),
        (r"/api/repos/delete", "delete"),
        (rf"/api/buckets/({NAME})", "bucket"),
        *OwnHub.routes,
    ]

    def __init__(self) -> None:
        super().__init__()
        self.spaces: dict[str, FakeSpace] = {}
        self.stages = ["RUNNING"]
        self.logs: dict[str, list[str]] = {}
        self.buckets: dict[str, bool] = {}
        self.has_plan = True

    def add(self, name: str, files: dict[str, bytes] | None = None, sdk: str = "docker") -> None:
        """Let a Space be there already."""
        repository = StoredRepository(private=True)
        repository.commits["0" * 40] = {file: Blob(data, is_large=False) for file, data in (files or {}).items()}
        self.repositories[name] = repository
        self.spaces[name] = FakeSpace(sdk, "cpu-basic")

    def _refusal(self, request: HubRequest) -> Answer | None:
        if request.step in _KEYS and request.body:
            unknown = request.json().keys() - _KEYS[request.step]
            assert not unknown, f"{request.step} may not have {unknown}"
        refusal = super()._refusal(request)
        is_of_a_space = request.path.startswith("/api/spaces/") and request.step != "list_hardware"
        if refusal is None and is_of_a_space and request.name not in self.spaces:
            return error_answer("RepoNotFound")
        return refusal

    def _info(self, request: HubRequest) -> Answer:
        status, answer, *_ = super()._info(request)
        if status == 200:
            # The real one has the settings of README.md as `cardData`.
            name = request.name
            parts = self.repositories[name].files().get("README.md", b"").decode().split("---\n")
            card = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
            host = f"https://{name.replace('/', '-')}.hf.space"
            answer |= {"sdk": self.spaces[name].sdk, "cardData": card, "host": host}
        return status, answer

    def _create(self, request: HubRequest) -> Answer:
        payload = request.json()
        assert payload["type"] == "space"
        assert payload["sdk"] in ("docker", "gradio")
        name = f"{payload['organization'] or ACCOUNT}/{payload['name']}"
        is_free = (payload["sdk"], payload["hardware"]) == _FREE
        if payload["hardware"] not in [machine["name"] for machine in HARDWARE] and not is_free:
            return 400, {"error": f"Invalid hardware {payload['hardware']}"}
        if not self.has_plan and not is_free and name not in self.spaces:
            return 402, {"error": "Subscribe to PRO to create Spaces on cpu-basic"}
        status, answer = super()._create(request)
        if status == 200:
            listing = {
                key: {entry["key"]: entry for entry in payload.get(key) or ()} for key in ("secrets", "variables")
            }
            sleep_seconds = payload.get("sleepTimeSeconds")
            self.spaces[name] = FakeSpace(payload["sdk"], payload["hardware"], **listing, sleep_seconds=sleep_seconds)
        return status, answer

    def _delete(self, request: HubRequest) -> Answer:
        payload = request.json()
        assert request.method == "DELETE"
        assert payload["type"] == "space"
        name = f"{payload['organization']}/{payload['name']}"
        if self.spaces.pop(name, None) is None:
            return error_answer("RepoNotFound")
        del self.repositories[name]
        return 200, {}

    def _runtime(self, request: HubRequest) -> Answer:
        space = self.spaces[request.name]
        stage = self.stages.pop(0) if len(self.stages) > 1 else self.stages[0]
        about = {"stage": stage, "gcTimeout": space.sleep_seconds, "storage": None}
        about["hardware"] = {"current": space.hardware, "requested": space.requested_hardware or space.hardware}
        about["sha"] = self.repositories[request.name].branches["main"]
        return 200, {**about, **({"errorMessage": space.error} if space.error else {})}

    def _secrets(self, request: HubRequest) -> Answer:
        return self._add_names(self.spaces[request.name].secrets, request, {"key", "description"})

    def _variables(self, request: HubRequest) -> Answer:
        return self._add_names(self.spaces[request.name].variables, request, {"key", "value", "description"})

    def _add_names(self, entries: dict[str, dict[str, str]], request: HubRequest, fields: set[str]) -> Answer:
        payload: dict[str, Any] = request.json() if request.body else {}
        if request.method == "POST":
            entries[payload["key"]] = payload
        elif request.method == "DELETE" and entries.pop(payload["key"], None) is None:
            return error_answer("EntryNotFound", "no such key")
        return 200, {
            key: {name: text for name, text in entry.items() if name in fields} for key, entry in entries.items()
        }

    def _hardware(self, request: HubRequest) -> Answer:
        payload, space = request.json(), self.spaces[request.name]
        space.requested_hardware = payload["flavor"]
        space.sleep_seconds = payload.get("sleepTimeSeconds", space.sleep_seconds)
        return self._runtime(request)

    def _sleeptime(self, request: HubRequest) -> Answer:
        self.spaces[request.name].sleep_seconds = request.json()["seconds"]
        return self._runtime(request)

    def _list_hardware(self, _: HubRequest) -> Answer:
        return 200, HARDWARE

    def _logs(self, request: HubRequest) -> Answer:
        return log_events(self.logs.get(request.match[2], []))

    def _bucket(self, request: HubRequest) -> Answer:
        name = request.name
        if request.method == "POST":
            exists = name in self.buckets
            self.buckets.setdefault(name, request.json().get("visibility") == "private")
            return (409 if exists else 200), {"url": f"{self.address}/buckets/{name}"}
        if name not in self.buckets:
            return error_answer("RepoNotFound", "Bucket not found")
        about = {"id": name, "private": self.buckets[name], "createdAt": "2026-01-01T00:00:00.000Z"}
        if request.method == "DELETE":
            del self.buckets[name]
        return 200, {**about, "size": 0, "totalFiles": 0}
