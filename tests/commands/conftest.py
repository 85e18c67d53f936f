"""What tests of commands share: a run to name, and a job that does nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from loratory.engine.chat.contract import JobProgress
from loratory.engine.config.load import config_from_mapping
from loratory.engine.paths import local_owner
from loratory.engine.runs.store import RunStore


class FakeJob:
    """A job of a command: notes what it is asked for, and has its result from a test."""

    def __init__(self, result: Callable[[Any], Any]) -> None:
        self.requests: list[Any] = []
        self.result = result

    def __call__(self, home, request) -> "FakeJob":
        self.requests.append(request)
        return self

    def run(self, on_progress):
        on_progress(JobProgress(phase="writing", message="Writing.", fraction=0.5))
        return self.result(self.requests[-1])


@pytest.fixture
def run_id(home) -> str:
    config = config_from_mapping({"model": {"id": "org/model"}, "dataset": {"source": "sample:x"}})
    return RunStore(home, local_owner()).create(config).id
