"""A real worker shows how much memory it took, however its attempt ends."""

import pytest

from loratory.engine.runs.history.events import MemoryData
from loratory.engine.training.worker import EXIT_FAILED, EXIT_FINISHED
from tests.training.worker_runs import events_of, history_of

pytestmark = pytest.mark.e2e


def kinds_of(run, attempt):
    return [event.kind for event in events_of(run) if event.attempt == attempt]


def test_every_attempt_reports_its_memory_at_its_first_step_and_at_its_end(workers, runs):
    run = runs.create()

    assert workers.run(run.folder.path, "training:step-7=out_of_memory") == EXIT_FAILED
    assert workers.run(run.folder.path) == EXIT_FINISHED

    for attempt in (1, 2):
        kinds = kinds_of(run, attempt)
        assert kinds[kinds.index("step") - 1] == "memory"
    assert kinds_of(run, 1)[-2:] == ["memory", "failed"]
    assert kinds_of(run, 2).count("memory") == 2
    records = [event.data.peak_process_bytes for event in events_of(run) if isinstance(event.data, MemoryData)]
    assert history_of(run).memory.peak_process_bytes == max(records) > 100e6
