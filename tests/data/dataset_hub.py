"""A Hub of datasets small enough for tests, and a process that reads of it through the real `datasets` library."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40

_READ = """
import json, sys
from engine.config.run import DatasetConfig
from engine.data.passes.reader import DatasetReader
from engine.data.source import SourceOptions
from engine.errors import EngineError

def answer(source, streaming):
    try:
        reader = DatasetReader(DatasetConfig(source=source), SourceOptions(streaming=streaming))
        return {"rows": [row.record.value for row in reader.rows()], "columns": reader.columns}
    except EngineError as error:
        return {"what": error.what, "fix": error.fix}

print(json.dumps([answer(*asked) for asked in json.loads(sys.argv[1])]))
"""


class DatasetHub:
    """Serves dataset repositories on loopback; use as a context manager.

    Attributes:
        repositories: Files by repository id and name.
        failing: Names of files that are listed, and answered with HTTP 500.
        paths: Every path that was asked for.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.failing: set[str] = set()
        self.paths: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def do_POST(self) -> None:
                self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "DatasetHub":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def read(self, cache: Path, asked: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
        """Read datasets in another process, one after the other: the rows of each, or the two sentences.

        Args:
            cache: The working folder of that process.
            asked: The source of each, and whether it is streamed.
        """
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        command = [sys.executable, "-c", _READ, json.dumps(asked)]
        process = subprocess.run(command, cwd=cache, env=environment, capture_output=True)
        assert process.returncode == 0, process.stderr.decode()[-3000:]
        answers: list[dict[str, Any]] = json.loads(process.stdout.decode().splitlines()[-1])
        return answers

    def _answer(self, request: Any) -> None:
        path = unquote(urlsplit(request.path).path)
        self.paths.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"] and "/".join(parts[2:4]) in self.repositories:
            files = self.repositories["/".join(parts[2:4])]
            _send(request, 200, json.dumps(_describe(parts, files, getattr(request, "body", b""))).encode())
        elif parts[:1] == ["datasets"] and len(parts) > 5 and parts[3] == "resolve":
            name = "/".join(parts[5:])
            content = self.repositories.get("/".join(parts[1:3]), {}).get(name)
            if content is None:
                _send(request, 404, b"", **{"X-Error-Code": "EntryNotFound"})
            elif name in self.failing:
                _send(request, 500, b"")
            else:
                _send(request, 200, content, **{"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT})
        else:
            _send(request, 404, b"", **{"X-Error-Code": "RepoNotFound"})


def _describe(parts: list[str], files: dict[str, bytes], body: bytes) -> Any:
    entries = [
        {"type": "file", "path": name, "size": len(content), "oid": _etag(content)} for name, content in files.items()
    ]
    folders = sorted({name.rpartition("/")[0] for name in files if "/" in name})
    entries += [{"type": "directory", "path": folder, "oid": _etag(folder.encode())} for folder in folders]
    if parts[4:5] == ["tree"]:
        folder = "/".join(parts[6:])
        return [entry for entry in entries if str(entry["path"]).rpartition("/")[0] == folder or not folder]
    if parts[4:5] == ["paths-info"]:
        payload = json.loads(body)["paths"]
        return [entry for entry in entries if entry["path"] in payload]
    return {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _send(request: Any, status: int, body: bytes, **headers: str) -> None:
    start, end = 0, len(body)
    if status == 200 and (asked := request.headers.get("Range")):
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, end, status = int(first), min(int(last or end) + 1, end), 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(end - start))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body[start:end])
