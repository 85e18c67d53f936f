"""Jobs and buckets of the Hub, strict about what they accept.

A job is a real process in an empty home with an environment of its own. Its container has two things of ours: `uv`, which
unpacks the wheel that it is given instead of installing it, and a storage client in the place of `hf_xet`, whose protocol is
a service of its own.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from tests.hub.server import ACCOUNT, NAME, TOKEN, Answer, HubRequest, HubServer, log_events, sha256

STORAGE_CLIENT = Path(__file__).parent / "storage_client"


def _machine(
    name: str, title: str, cpu: str, ram: str, gpu: tuple[str, str, str] | None, per_hour: float
) -> dict[str, Any]:
    accelerator = None
    if gpu is not None:
        model, quantity, vram = gpu
        accelerator = {"type": "gpu", "model": model, "quantity": quantity, "vram": vram, "manufacturer": "Nvidia"}
    return {
        "name": name, "prettyName": title, "cpu": cpu, "ram": ram, "ephemeralStorage": "50 GB", "accelerator": accelerator,
        "unitCostMicroUSD": round(per_hour / 60 * 1e6), "unitCostUSD": per_hour / 60, "unitLabel": "minute",
    }  # fmt: skip


HARDWARE: list[dict[str, Any]] = [
    _machine("cpu-basic", "CPU Basic", "2 vCPU", "16 GB", None, 0.01),
    _machine("cpu-upgrade", "CPU Upgrade", "8 vCPU", "32 GB", None, 0.03),
    _machine("t4-small", "Nvidia T4 - small", "4 vCPU", "15 GB", ("T4", "1", "16 GB"), 0.4),
    _machine("l4x1", "1x Nvidia L4", "8 vCPU", "30 GB", ("L4", "1", "24 GB"), 0.8),
    _machine("a10g-large", "Nvidia A10G - large", "12 vCPU", "46 GB", ("A10G", "1", "24 GB"), 1.5),
    _machine("l40sx1", "1x Nvidia L40S", "8 vCPU", "62 GB", ("L40S", "1", "48 GB"), 1.8),
    _machine("a100-large", "Nvidia A100 - large", "12 vCPU", "142 GB", ("A100", "1", "80 GB"), 2.5),
    _machine("l4x4", "4x Nvidia L4", "48 vCPU", "186 GB", ("L4", "4", "96 GB"), 3.8),
]
_SPEC_KEYS = {
    "command", "arguments", "environment", "secrets", "flavor", "timeoutSeconds", "attempts", "labels", "volumes", "dockerImage",
}  # fmt: skip
_UV = """#!{python}
import os, sys, zipfile
arguments = sys.argv[1:]
assert arguments[:2] == ["run", "--no-project"], arguments
at = arguments.index("python")
site = os.path.join(os.environ["HOME"], "site")
for option, value in zip(arguments[:at], arguments[1:at]):
    if option == "--with" and value.endswith(".whl"):
        zipfile.ZipFile(value).extractall(site)
        os.environ["PYTHONPATH"] = site + os.pathsep + os.environ["PYTHONPATH"]
os.execv({python!r}, [{python!r}, *arguments[at + 1:]])
"""


@dataclass
class FakeJob:
    """One job, as the Hub knows it."""

    id: str
    spec: dict[str, Any]
    folder: Path
    namespace: str = ACCOUNT
    stage: str = "SCHEDULING"
    message: str | None = None
    process: subprocess.Popen[bytes] | None = None
    start_time: float = field(default_factory=time.monotonic)
    end_time: float | None = None

    @property
    def log(self) -> Path:
        return self.folder / "output"


class JobsHub(HubServer):
    """Starts jobs and keeps their files.

    Args:
        root: For the homes of jobs.

    Attributes:
        starts_jobs: Whether a job is started when it is submitted; else a test decides what becomes of it.
        files: Content of each bucket by path.
        public: Buckets that are not private.
        jobs: By id.
        on_store: Gets each name before it is stored, `on_stored` afterwards.
        asked_as: Each step, with the token that came with it; `paths_as` has the paths.
    """

    _JOB = r"/api/jobs/([^/]+)/([0-9a-f]+)"
    _BUCKET = rf"/api/buckets/({NAME})"
    routes: ClassVar = [
        (r"/api/whoami-v2", "whoami"),
        (r"/api/jobs/hardware", "hardware"),
        (r"/api/jobs/([^/]+)", "submit"),
        (_JOB, "inspect"),
        (rf"{_JOB}/cancel", "cancel"),
        (rf"{_JOB}/logs", "logs"),
        (_BUCKET, "make"),
        (rf"{_BUCKET}/tree(?:/(.*))?", "tree"),
        (rf"{_BUCKET}/batch", "batch"),
        (rf"{_BUCKET}/paths-info", "paths"),
        (rf"{_BUCKET}/xet-(?:read|write)-token", "token"),
        (rf"/buckets/({NAME})/resolve/(.+)", "about"),
        (r"/storage/([0-9a-f]{64})", "storage"),
        (r"(.*)", "other"),
    ]
    open_steps = frozenset({"storage"})

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self.starts_jobs = True
        self.files: dict[str, dict[str, bytes]] = {}
        self.public: set[str] = set()
        self.jobs: dict[str, FakeJob] = {}
        self.on_store: Callable[[str], None] = lambda _: None
        self.on_stored: Callable[[str], None] = lambda _: None
        self.asked_as: list[tuple[str, str]] = []
        self.paths_as: list[tuple[str, str]] = []
        self._contents: dict[str, bytes] = {}

    def __exit__(self, *error: object) -> None:
        for job in self.jobs.values():
            self.end(job, "CANCELED")
        super().__exit__(*error)

    def only_job(self) -> FakeJob:
        (job,) = self.jobs.values()
        return job

    def store(self, bucket: str, name: str, data: bytes) -> None:
        """Put a file into a bucket, as a job does."""
        self._contents[sha256(data)] = data
        self.files[bucket][name] = data

    def end(self, job: FakeJob, stage: str, message: str | None = None) -> None:
        """End a job at once, as Hugging Face does at its time limit."""
        if job.end_time is not None:
            return
        job.stage, job.message, job.end_time = stage, message, time.monotonic()
        if job.process is not None and job.process.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()

    def start(self, job: FakeJob) -> None:
        """Start a job's command, as its container would."""
        home, container = job.folder / "home", job.folder / "container"
        for folder in (home, container, job.folder / "tmp"):
            folder.mkdir(parents=True)
        uv = container / "uv"
        uv.write_text(_UV.format(python=sys.executable))
        uv.chmod(0o755)
        environment = {
            "PATH": f"{container}:/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(job.folder / "tmp"), "LANG": "C.UTF-8",
            "PYTHONPATH": str(STORAGE_CLIENT), "HF_ENDPOINT": self.address, "PYTHONDONTWRITEBYTECODE": "1",
            **job.spec["environment"], **job.spec.get("secrets", {}),
        }  # fmt: skip
        job.process = subprocess.Popen(
            job.spec["command"], env=environment, cwd=home, stdout=job.log.open("wb"), stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        job.stage, job.start_time = "RUNNING", time.monotonic()
        threading.Thread(target=self._wait, args=(job, job.process), daemon=True).start()

    def _wait(self, job: FakeJob, process: subprocess.Popen[bytes]) -> None:
        try:
            code = process.wait(job.spec.get("timeoutSeconds", 1800))
        except subprocess.TimeoutExpired:
            self.end(job, "ERROR", "Job timeout")
            return
        with self._lock:
            if job.end_time is None:
                job.end_time = time.monotonic()
                error = None if code == 0 else f"Job failed with exit code: {code}"
                job.stage, job.message = ("COMPLETED" if code == 0 else "ERROR"), error

    def _refusal(self, request: HubRequest) -> Answer | None:
        if request.step == "storage":
            return None
        self.asked_as.append((request.step, request.token))
        self.paths_as.append((request.path, request.token))
        refusal = super()._refusal(request)
        if refusal is not None or not request.match.groups() or request.step in ("other", "submit"):
            return refusal  # which answers by itself
        if request.name.split("/")[0] in (self.accounts[request.token], "lab"):
            return None
        is_hidden = request.step in ("inspect", "cancel", "logs")
        return (404, {"error": "Not found"}) if is_hidden else (403, {"error": "Forbidden"})

    def _hardware(self, _: HubRequest) -> Answer:
        return 200, HARDWARE

    def _submit(self, request: HubRequest) -> Answer:
        if request.method == "GET":
            self.requests["find"] += 1
            labels = dict(text.split("=", 1) for text in request.query.get("label", [])).items()
            mine = [job for job in self.jobs.values() if job.namespace == request.name]
            return 200, [self._job_json(job) for job in mine if labels <= job.spec["labels"].items()]
        spec = request.json()
        wrong = wrong_with(spec)
        if wrong or request.name not in (self.accounts[request.token], "lab"):
            return 400, {"error": wrong or "no such namespace"}
        number = f"{len(self.jobs):024x}"
        job = self.jobs[number] = FakeJob(number, spec, self._root / f"job-{number[-3:]}", request.name)
        job.folder.mkdir(parents=True)
        if self.starts_jobs:
            self.start(job)
        return 200, self._job_json(job)

    def _inspect(self, request: HubRequest) -> Answer:
        job = self.jobs.get(request.match[2])
        return (200, self._job_json(job)) if job is not None else (404, {"error": "Job not found"})

    def _cancel(self, request: HubRequest) -> Answer:
        if job := self.jobs.get(request.match[2]):
            self.end(job, "CANCELED")
        return self._inspect(request)

    def _logs(self, request: HubRequest) -> Answer:
        log = self.jobs[request.match[2]].log
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return log_events(lines[-int(request.query["tail"][0]) :] if "tail" in request.query else lines)

    def _job_json(self, job: FakeJob) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        seconds = round((job.end_time or time.monotonic()) - job.start_time)
        spec = job.spec
        return {
            "id": job.id, "createdAt": now, "dockerImage": spec["dockerImage"], "command": spec["command"], "arguments": [],
            "environment": spec["environment"], "secrets": dict.fromkeys(spec.get("secrets", {}), ""), "flavor": spec["flavor"],
            "labels": spec["labels"], "status": {"stage": job.stage, "message": job.message},
            "durations": {"schedulingSecs": 1, "runningSecs": seconds, "totalSecs": seconds + 1},
            "owner": {"id": "5e9ecfc04957053f60648a3e", "name": job.namespace, "type": "user"},
        }  # fmt: skip

    def _make(self, request: HubRequest) -> Answer:
        name, url = request.name, {"url": f"{self.address}/buckets/{request.name}"}
        if request.method == "GET":
            if name not in self.files:
                return 404, {"error": "Bucket not found"}
            sizes = [len(data) for data in self.files[name].values()]
            about = {"id": name, "private": name not in self.public, "createdAt": "2026-01-01T00:00:00.000Z"}
            return 200, {**about, "size": sum(sizes), "totalFiles": len(sizes)}
        if name in self.files:
            return 409, url
        self.files[name] = {}
        if request.json().get("visibility") != "private":
            self.public.add(name)
        return 200, url

    def _tree(self, request: HubRequest) -> Answer:
        assert request.query.get("recursive") in (["True"], ["true"]), request.query
        prefix, after = request.match[2] or "", request.query.get("cursor", [""])[0]
        files = self.files.get(request.name)
        if files is None:
            return 404, {"error": "Bucket not found"}
        names = [name for name in sorted(files) if name.startswith(prefix) and name > after]
        headers = {}
        if len(names) > 100:
            following = f"{self.address}/api/buckets/{request.name}/tree/{prefix}?recursive=True&cursor={names[99]}"
            headers["Link"] = f'<{following}>; rel="next"'
        return 200, [_entry(name, files[name]) for name in names[:100]], headers

    def _batch(self, request: HubRequest) -> Answer:
        files = self.files[request.name]
        changes = [json.loads(line) for line in request.body.splitlines()]
        for change in changes:
            name = change["path"]
            if change["type"] == "addFile":
                self.on_store(name)
                files[name] = self._contents[change["xetHash"]]
                self.on_stored(name)
            elif change["type"] == "deleteFile":
                files.pop(name, None)
            else:
                return 400, {"error": change["type"]}
        return 200, {"succeeded": len(changes), "failed": []}

    def _about(self, request: HubRequest) -> Answer:
        data = self.files[request.name].get(request.match[2])
        if data is None:
            return 404, {"error": "Entry not found"}
        route = f"{self.address}/api/buckets/{request.name}/xet-read-token"
        return 200, b"", {"X-Xet-Hash": sha256(data), "X-Xet-Refresh-Route": route, "X-Linked-Size": str(len(data))}

    def _paths(self, request: HubRequest) -> Answer:
        files = self.files[request.name]
        return 200, [_entry(name, files[name]) for name in request.json()["paths"] if name in files]

    def _token(self, _: HubRequest) -> Answer:
        return 200, {"accessToken": "storage", "exp": int(time.time()) + 3600, "casUrl": f"{self.address}/storage"}

    def _storage(self, request: HubRequest) -> Answer:
        if request.method == "GET":
            return 200, self._contents[request.name], {"Content-Type": "application/octet-stream"}
        assert sha256(request.body) == request.name
        self._contents[request.name] = request.body
        return 200, {}


def wrong_with(spec: dict[str, Any]) -> str:
    """Refuse what the real service would refuse, by what `HfApi.run_job` may send."""
    if unknown := spec.keys() - _SPEC_KEYS:
        return f"unknown keys {sorted(unknown)}"
    if spec["flavor"] not in [machine["name"] for machine in HARDWARE]:
        return f"unknown flavor {spec['flavor']}"
    if not all(isinstance(part, str) for part in spec["command"]) or not spec["command"]:
        return "a command is a list of strings"
    if not isinstance(spec.get("timeoutSeconds"), int) or spec["timeoutSeconds"] <= 0:
        return "timeoutSeconds is a positive whole number"
    if not all(re.fullmatch(r"[A-Za-z0-9._-]{1,100}", text) for text in (*spec["labels"], *spec["labels"].values())):
        return "a label has letters, digits, dots, - and _"
    if any(secret in json.dumps({**spec, "secrets": None}) for secret in spec.get("secrets", {}).values() or [TOKEN]):
        return "the token is outside the secrets"
    return ""


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {
        "type": "file", "path": name, "size": len(data), "xetHash": sha256(data),
        "mtime": "2026-01-01T00:00:00.000Z", "uploadedAt": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
