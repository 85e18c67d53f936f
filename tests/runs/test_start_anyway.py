"""A person who knows better than the estimate lets a waiting run start."""

import pytest

from engine.errors import RunError
from engine.runs.control import request_start_anyway
from engine.runs.provenance import Provenance
from engine.runs.store import RunStore
from engine.runs.supervision.supervisor import Supervisor
from tests.runs.supervision import GIB, config_for, cpu, fake_settings, wait_for_state, wait_until


def test_a_run_that_waits_for_memory_starts_anyway_once_asked(home):
    run = RunStore(home, "ann").create(config_for("steps=2"), Provenance(predicted_bytes=10 * GIB))
    looks = []

    def devices():
        looks.append(1)
        return (cpu(free_gib=1),)

    supervisor = Supervisor(home, fake_settings(devices=devices))
    supervisor.start()
    try:
        wait_until(lambda: run.folder.read_state().reason == "memory")
        count_before = len(looks)
        wait_until(lambda: len(looks) > count_before + 2)
        assert run.folder.read_state().state == "queued"

        request_start_anyway(run)

        wait_for_state(run, "completed")
        with pytest.raises(RunError, match="does not wait"):
            request_start_anyway(run)
    finally:
        supervisor.stop()
