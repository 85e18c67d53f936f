"""A bucket in memory, which fails, loses answers and breaks off on request."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from loratory.engine.errors import EngineError, HubUnreachableError, PushError


class Killed(BaseException):
    """The process ends here."""


class FakeBucket:
    """What a mirror asks of a `RunBucket`.

    Attributes:
        files: Contents by name.
        asked: How often each thing was asked for.
        sent: Bytes of all puts.
        refuse: Called before each request with its kind; what it raises, the request raises.
        after_each: Called after each single file was put or removed, with its name.
        lost: Raised after a request was done, once.
    """

    name = "ann/bucket"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.sent = 0
        self.refuse: Callable[[str], None] = lambda _: None
        self.after_each: Callable[[str], None] = lambda _: None
        self.lost: EngineError | None = None
        self.torn: set[str] = set()  # names whose next download is cut short

    def _answer_request(self, kind: str) -> None:
        self.requests[kind] += 1
        self.refuse(kind)

    def _answer(self) -> None:
        if self.lost is not None:
            error, self.lost = self.lost, None
            raise error

    def make(self) -> None:
        self._answer_request("make")

    def list(self, folder: str) -> dict[str, SimpleNamespace]:
        self._answer_request("list")
        return {
            name.removeprefix(f"{folder}/"): SimpleNamespace(
                path=name, size=len(data), xet_hash=hashlib.sha256(data).hexdigest()
            )
            for name, data in self.files.items()
            if name.startswith(f"{folder}/")
        }

    def put(self, files: Mapping[str, bytes | Path]) -> None:
        if not files:
            return
        self._answer_request("put")
        try:  # all are read before any is stored
            contents = {name: data if isinstance(data, bytes) else data.read_bytes() for name, data in files.items()}
        except OSError as error:
            raise HubUnreachableError(f"It cannot be reached ({type(error).__name__}).", "Wait.") from None
        for name, data in contents.items():
            self.files[name] = data
            self.sent += len(data)
            self.after_each(name)
        self._answer()

    def get(self, files: Sequence[tuple[SimpleNamespace, Path]]) -> None:
        if files:
            self._answer_request("get")
        for file, path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = self.files[file.path]
            if file.path in self.torn:
                self.torn.discard(file.path)
                data = data[: len(data) // 2]
            path.write_bytes(data)

    def remove(self, names: Sequence[str]) -> None:
        if not names:
            return
        self._answer_request("remove")
        missing = [name for name in names if name not in self.files]
        for name in names:
            self.files.pop(name, None)
            self.after_each(name)
        if missing:
            raise PushError(f"{len(missing)} files are not there.", "Check the bucket.")
        self._answer()
