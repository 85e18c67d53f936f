"""Hugging Face's Jobs and buckets, small enough for tests, strict about what it accepts, and failing on demand.

A job is a real process in an empty home with an environment of its own. Its container has two things of ours: `uv`, which
unpacks the wheel that it is given instead of installing it, and a storage client in the place of `hf_xet`, whose protocol is
a service of its own.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.jobs.service import HARDWARE, Fault, wrong_with

TOKEN = "hf_CanaryThatMustNeverBeSeenAnywhere43"
ACCOUNT = "ada"
STORAGE_CLIENT = Path(__file__).parent / "storage_client"


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
    """One job, as the stand-in knows it."""

    id: str
    spec: dict[str, Any]
    folder: Path
    namespace: str = ACCOUNT
    stage: str = "SCHEDULING"
    message: str | None = None
    process: subprocess.Popen[bytes] | None = None
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def log(self) -> Path:
        return self.folder / "output"


class JobsStandIn:
    """Serves on loopback; use as a context manager.

    Args:
        root: For the homes of jobs.
        starts_jobs: Whether a job is started when it is submitted; else a test decides what becomes of it.

    Attributes:
        files: Content of each bucket by path.
        jobs: By id.
        faults: Taken one after the other, each as often as it says.
        asked: How often each step was asked for.
    """

    def __init__(self, root: Path, *, starts_jobs: bool = True) -> None:
        self.root = root
        self.starts_jobs = starts_jobs
        self.files: dict[str, dict[str, bytes]] = {}
        self.public: set[str] = set()
        self.jobs: dict[str, FakeJob] = {}
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.on_store: Callable[[str], None] = lambda _: None  # gets each name before it is stored
        self.on_stored: Callable[[str], None] = lambda _: None  # gets each name that a job or we store
        self.others: list[str] = []  # what was asked for besides
        self.accounts = {TOKEN: ACCOUNT}  # by token
        self.asked_as: list[tuple[str, str]] = []  # each step, with the token that came with it
        self.paths_as: list[tuple[str, str]] = []
        self._contents: dict[str, bytes] = {}
        self._account = ""  # whose request is answered
        self._lock = threading.Lock()  # guards all of it: a request is answered as a whole
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536

            def do_GET(self) -> None:
                stand_in._serve(self)

            do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 - names of the base class

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "JobsStandIn":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs.values():
            self.end(job, "CANCELED")
        self._server.shutdown()
        self._server.server_close()

    def only_job(self) -> FakeJob:
        (job,) = self.jobs.values()
        return job

    def store(self, bucket: str, name: str, data: bytes) -> None:
        """Put a file into a bucket, as a job does."""
        self._contents[_sha256(data)] = data
        self.files[bucket][name] = data

    def end(self, job: FakeJob, stage: str, message: str | None = None) -> None:
        """End a job at once, as Hugging Face does at its time limit."""
        if job.ended is not None:
            return
        job.stage, job.message, job.ended = stage, message, time.monotonic()
        if job.process is not None and job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()

    def start(self, job: FakeJob) -> None:
        """Start a job's command, as its container would."""
        home = job.folder / "home"
        container = job.folder / "container"
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
        job.stage, job.began = "RUNNING", time.monotonic()
        threading.Thread(target=self._wait, args=(job, job.process), daemon=True).start()

    def _wait(self, job: FakeJob, process: subprocess.Popen[bytes]) -> None:
        try:
            code = process.wait(job.spec.get("timeoutSeconds", 1800))
        except subprocess.TimeoutExpired:
            self.end(job, "ERROR", "Job timeout")
            return
        with self._lock:
            if job.ended is None:
                job.ended = time.monotonic()
                job.stage, job.message = (
                    ("COMPLETED", None) if code == 0 else ("ERROR", f"Job failed with exit code: {code}")
                )

    # Answers.

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        step, result = _step(path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests[step] += 1
        with self._lock:
            fault = next((one for one in self.faults if one.step == step and one.times > 0), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and fault.what != "lost":
            if fault.what == "reset":
                request.close_connection = True
                request.connection.close()
            else:
                _send(request, int(fault.what), {"error": f"refused with {TOKEN}"})
            return
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if step != "storage":
            self.asked_as.append((step, token))
            self.paths_as.append((path, token))
            account = self.accounts.get(token)
            if account is None:
                _send(request, 401, {"error": "Invalid credentials in Authorization header"})
                return
            namespace = result[1].split("/")[0] if result.groups() and step not in ("other",) else account
            if namespace not in (account, "lab") and step != "submit":  # which answers by itself
                hidden = step in ("inspect", "cancel", "logs")
                _send(request, 404 if hidden else 403, {"error": "Not found" if hidden else "Forbidden"})
                return
        with self._lock:
            self._account = self.accounts.get(token, "")
            answer = getattr(self, f"_{step}")(result, query, body, request.command)
        if fault is not None:
            request.close_connection = True
            request.connection.close()
            return
        status, value, *headers = answer
        _send(request, status, value, headers[0] if headers else {})

    def _other(self, found: Any, *_: Any) -> Any:
        self.others.append(found[1])
        return 404, {"error": "Not found"}

    def _whoami(self, *_: Any) -> Any:
        return 200, {"type": "user", "name": self._account, "orgs": [{"name": "lab"}]}

    def _hardware(self, *_: Any) -> Any:
        return 200, HARDWARE

    def _submit(self, found: Any, query: Any, body: bytes, method: str) -> Any:
        if method == "GET":
            self.requests["find"] += 1
            wanted = dict(text.split("=", 1) for text in query.get("label", []))
            mine = [one for one in self.jobs.values() if one.namespace == found[1]]
            matching = [one for one in mine if wanted.items() <= one.spec["labels"].items()]
            return 200, [self._job_json(one) for one in matching]
        spec = json.loads(body)
        wrong = wrong_with(spec, TOKEN)
        if wrong or found[1] not in (self._account, "lab"):
            return 400, {"error": wrong or "no such namespace"}
        number = f"{len(self.jobs):024x}"
        job = self.jobs[number] = FakeJob(number, spec, self.root / f"job-{number[-3:]}", found[1])
        job.folder.mkdir(parents=True)
        if self.starts_jobs:
            self.start(job)
        return 200, self._job_json(job)

    def _inspect(self, found: Any, *_: Any) -> Any:
        job = self.jobs.get(found[2])
        return (200, self._job_json(job)) if job is not None else (404, {"error": "Job not found"})

    def _cancel(self, found: Any, *_: Any) -> Any:
        job = self.jobs.get(found[2])
        if job is None:
            return 404, {"error": "Job not found"}
        self.end(job, "CANCELED")
        return 200, self._job_json(job)

    def _logs(self, found: Any, query: Any, *_: Any) -> Any:
        log = self.jobs[found[2]].log
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        lines = lines[-int(query["tail"][0]) :] if "tail" in query else lines
        events = "".join(
            f"data: {json.dumps({'data': line, 'timestamp': '2026-01-01T00:00:00Z'})}\n\n" for line in lines
        )
        return 200, events.encode(), {"Content-Type": "text/event-stream"}

    def _job_json(self, job: FakeJob) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        seconds = round((job.ended or time.monotonic()) - job.began)
        spec = job.spec
        return {
            "id": job.id, "createdAt": now, "dockerImage": spec["dockerImage"], "command": spec["command"], "arguments": [],
            "environment": spec["environment"], "secrets": dict.fromkeys(spec.get("secrets", {}), ""), "flavor": spec["flavor"],
            "labels": spec["labels"], "status": {"stage": job.stage, "message": job.message},
            "durations": {"schedulingSecs": 1, "runningSecs": seconds, "totalSecs": seconds + 1},
            "owner": {"id": "5e9ecfc04957053f60648a3e", "name": job.namespace, "type": "user"},
        }  # fmt: skip

    def _make(self, found: Any, _: Any, body: bytes, method: str) -> Any:
        name = found[1]
        url = {"url": f"{self.address}/buckets/{name}"}
        if method == "GET":
            if name not in self.files:
                return 404, {"error": "Bucket not found"}
            sizes = [len(data) for data in self.files[name].values()]
            about = {"id": name, "private": name not in self.public, "createdAt": "2026-01-01T00:00:00.000Z"}
            return 200, {**about, "size": sum(sizes), "totalFiles": len(sizes)}
        if name in self.files:
            return 409, url
        self.files[name] = {}
        if json.loads(body).get("visibility") != "private":
            self.public.add(name)
        return 200, url

    def _tree(self, found: Any, query: Any, *_: Any) -> Any:
        assert query.get("recursive") == ["True"] or query.get("recursive") == ["true"], query
        prefix, after = found[2] or "", (query.get("cursor") or [""])[0]
        files = self.files.get(found[1])
        if files is None:
            return 404, {"error": "Bucket not found"}
        names = [name for name in sorted(files) if name.startswith(prefix) and name > after]
        page = [self._file(name, files[name]) for name in names[:100]]
        headers = {}
        if len(names) > 100:
            following = f"{self.address}/api/buckets/{found[1]}/tree/{prefix}?recursive=True&cursor={names[99]}"
            headers["Link"] = f'<{following}>; rel="next"'
        return 200, page, headers

    @staticmethod
    def _file(name: str, data: bytes) -> dict[str, Any]:
        return {
            "type": "file", "path": name, "size": len(data), "xetHash": _sha256(data),
            "mtime": "2026-01-01T00:00:00.000Z", "uploadedAt": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def _batch(self, found: Any, _: Any, body: bytes, __: str) -> Any:
        files = self.files[found[1]]
        for line in body.splitlines():
            payload = json.loads(line)
            if payload["type"] == "addFile":
                self.on_store(payload["path"])
                files[payload["path"]] = self._contents[payload["xetHash"]]
                self.on_stored(payload["path"])
            elif payload["type"] == "deleteFile":
                files.pop(payload["path"], None)
            else:
                return 400, {"error": payload["type"]}
        return 200, {"succeeded": len(body.splitlines()), "failed": []}

    def _about(self, found: Any, *_: Any) -> Any:
        data = self.files[found[1]].get(found[2])
        if data is None:
            return 404, {"error": "Entry not found"}
        route = f"{self.address}/api/buckets/{found[1]}/xet-read-token"
        return 200, b"", {"X-Xet-Hash": _sha256(data), "X-Xet-Refresh-Route": route, "X-Linked-Size": str(len(data))}

    def _paths(self, found: Any, _: Any, body: bytes, __: str) -> Any:
        files = self.files[found[1]]
        return 200, [self._file(name, files[name]) for name in json.loads(body)["paths"] if name in files]

    def _token(self, *_: Any) -> Any:
        return 200, {"accessToken": "storage", "exp": int(time.time()) + 3600, "casUrl": f"{self.address}/storage"}

    def _storage(self, found: Any, _: Any, body: bytes, method: str) -> Any:
        if method == "GET":
            return 200, self._contents[found[1]], {"Content-Type": "application/octet-stream"}
        assert _sha256(body) == found[1]
        self._contents[found[1]] = body
        return 200, {}


_ROUTES: list[tuple[str, str]] = [
    (r"/api/whoami-v2", "whoami"),
    (r"/api/jobs/hardware", "hardware"),
    (r"/api/jobs/([^/]+)", "submit"),
    (r"/api/jobs/([^/]+)/([0-9a-f]+)", "inspect"),
    (r"/api/jobs/([^/]+)/([0-9a-f]+)/cancel", "cancel"),
    (r"/api/jobs/([^/]+)/([0-9a-f]+)/logs", "logs"),
    (r"/api/buckets/([^/]+/[^/]+)", "make"),
    (r"/api/buckets/([^/]+/[^/]+)/tree(?:/(.*))?", "tree"),
    (r"/api/buckets/([^/]+/[^/]+)/batch", "batch"),
    (r"/api/buckets/([^/]+/[^/]+)/paths-info", "paths"),
    (r"/api/buckets/([^/]+/[^/]+)/xet-(?:read|write)-token", "token"),
    (r"/buckets/([^/]+/[^/]+)/resolve/(.+)", "about"),
    (r"/storage/([0-9a-f]{64})", "storage"),
    (r"(.*)", "other"),
]


def _step(path: str) -> tuple[str, re.Match[str]]:
    return next((step, match) for pattern, step in _ROUTES if (match := re.fullmatch(pattern, path)))


def _send(request: BaseHTTPRequestHandler, status: int, value: object, headers: dict[str, str] | None = None) -> None:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    request.send_response(status)
    for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
        request.send_header(name, text)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
