"""Stands in for `hf_xet` in tests: the calls that huggingface_hub makes, over plain HTTP to the stand-in's storage."""

import hashlib
import json
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SKIP_SHA256, COMPUTE_SHA256 = object(), object()


class XetFileInfo:
    def __init__(self, hash: str, file_size: int | None = None) -> None:  # noqa: A002 - as the real one has it
        self.hash = hash
        self.file_size = file_size


class _Group:
    def __init__(self, token_refresh_url: str, token_refresh_headers: dict[str, str], **_: Any) -> None:
        request = urllib.request.Request(token_refresh_url, headers=token_refresh_headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            self._storage = json.load(answer)["casUrl"]
        self._work: list[Any] = []

    def __enter__(self) -> "_Group":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for task in self._work:
                task()

    def _upload(self, read: Any, sha256: Any) -> Any:
        assert sha256 is SKIP_SHA256
        handle = SimpleNamespace()

        def upload() -> None:
            data = read()
            digest = hashlib.sha256(data).hexdigest()
            request = urllib.request.Request(f"{self._storage}/{digest}", data=data, method="PUT")
            urllib.request.urlopen(request, timeout=300).close()
            info = XetFileInfo(digest, len(data))
            handle.result = lambda: SimpleNamespace(xet_info=info)

        self._work.append(upload)
        return handle

    def start_upload_file(self, path: str, sha256: Any) -> Any:
        return self._upload(Path(path).read_bytes, sha256)

    def start_upload_bytes(self, data: bytes, sha256: Any) -> Any:
        return self._upload(lambda: data, sha256)

    def start_download_file(self, info: XetFileInfo, path: str) -> None:
        def download() -> None:
            with urllib.request.urlopen(f"{self._storage}/{info.hash}", timeout=300) as answer:
                Path(path).write_bytes(answer.read())

        self._work.append(download)


class XetSession:
    def new_upload_commit(self, **settings: Any) -> _Group:
        return _Group(**settings)

    def new_file_download_group(self, **settings: Any) -> _Group:
        return _Group(**settings)

    def sigint_abort(self) -> None:
        pass
