"""Workers that read what strangers wrote: ended when they overrun, and nothing else is lost or waits."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loratory.engine.errors import ModelLimitError, WorkerError
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.processes.pool import ProcessPool
from tests.waiting import PATIENCE_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]
WORKER = "tests.processes.confined_worker"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits are those of Linux")


def a_process(tmp_path: Path) -> JsonLinesProcess:
    return JsonLinesProcess(WORKER, log_file=tmp_path / "worker.log", environment={"PYTHONPATH": str(ROOT)})


@pytest.fixture
def keeps_up(monkeypatch):
    """Let the first process of a pool count as one that keeps up, however long it stands still."""
    monkeypatch.setattr("loratory.engine.processes.pool._BEGINS_WITHIN_SECONDS", PATIENCE_SECONDS)


@pytest.fixture
def pool(tmp_path):
    pool = ProcessPool(
        (a_process(tmp_path), a_process(tmp_path)),
        lambda params: ModelLimitError(f"{params['name']} overran.", "Choose another."),
    )
    yield pool
    pool.close(timeout_seconds=0.5)


@pytest.mark.usefixtures("keeps_up")
def test_code_stuck_in_c_is_ended_explained_and_not_tried_again(pool):
    first = pool.call("echo", {})["pid"]

    with pytest.raises(ModelLimitError, match="The template overran"):
        pool.call("stick", {"name": "The template", "seconds": 0.3})
    second = pool.call("echo", {})["pid"]
    with pytest.raises(ModelLimitError, match="The template overran"):
        pool.call("stick", {"name": "The template", "seconds": 3600})

    assert first != second
    assert pool.call("echo", {})["pid"] == second, "a known overrun ended another process"


@pytest.mark.usefixtures("keeps_up")
def test_what_was_under_way_in_that_process_is_asked_again(pool, tmp_path):
    is_over = tmp_path / "over"
    counting = pool.stream("count", {"to": 1_000_000, "until": str(is_over)})
    next(counting)
    first = pool.pids[0]

    with pytest.raises(ModelLimitError):
        pool.call("stick", {"name": "It", "seconds": 0.3})
    is_over.touch()

    assert list(counting)[-1]["result"]["pid"] != first


def test_a_question_is_answered_while_another_is_stuck(pool):
    stuck = pool.stream("stick", {"name": "It", "seconds": 600})
    pid = next(stuck)["progress"]["pid"]

    assert pool.call("echo", {})["pid"] != pid
    identity = ProcessIdentity.from_pid(pid)
    assert identity is not None
    assert identity.is_alive(), "it was answered only because the stuck process was gone"


@pytest.mark.usefixtures("keeps_up")
def test_one_process_is_enough_while_it_keeps_up(pool):
    counting = pool.stream("count", {"to": 1_000_000})
    next(counting)
    answers = [pool.call("echo", {})["pid"] for _ in range(5)]
    counting.close()

    assert set(answers) == set(pool.pids)
    assert len(pool.pids) == 1


@pytest.mark.usefixtures("keeps_up")
def test_a_spare_process_is_ready_before_it_is_needed(tmp_path):
    pool = ProcessPool((a_process(tmp_path), a_process(tmp_path)), lambda params: ModelLimitError("", ""), spare=True)
    first = pool.call("echo", {})["pid"]
    assert len(pool.pids) == 2

    assert [pool.call("echo", {})["pid"] for _ in range(3)] == [first] * 3, "a spare process knows no tokenizer yet"

    pool.close(timeout_seconds=0.5)
    assert not pool.pids


def test_closing_ends_what_is_under_way_and_starts_nothing_again(pool):
    counting = pool.stream("count", {"to": 1_000_000})
    next(counting)

    pool.close(timeout_seconds=0.1)

    with pytest.raises(WorkerError):
        list(counting)
    assert not pool.pids


def test_too_much_memory_is_an_error_and_the_worker_lives_on(tmp_path):
    process = a_process(tmp_path)
    pid = process.call("echo", {})["pid"]

    with pytest.raises(WorkerError, match="Memory ran out"):
        process.call("allocate", {"bytes": 10**10})

    assert process.call("allocate", {"bytes": 1_000_000}) == {"length": 1_000_000}
    assert process.call("echo", {})["pid"] == pid
    process.close()


ASKER = """
import sys, threading
from pathlib import Path
from loratory.engine.processes.json_lines import JsonLinesProcess

process = JsonLinesProcess(sys.argv[1], log_file=Path(sys.argv[2]))
stuck = process.stream("stick", {"seconds": 3600})
print(next(stuck)["progress"]["pid"], flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_stuck_in_c_ends_with_its_asker_however_that_ends(tmp_path, number):
    asker = subprocess.Popen(
        [sys.executable, "-c", ASKER, WORKER, str(tmp_path / "log")],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert asker.stdout is not None
    worker = ProcessIdentity.from_pid(int(asker.stdout.readline()))
    assert worker is not None

    asker.send_signal(number)
    asker.communicate()

    wait_until(lambda: not worker.is_alive())


def test_many_questions_at_once_are_all_answered(pool):
    with ThreadPoolExecutor(20) as threads:
        pids = list(threads.map(lambda _: pool.call("echo", {})["pid"], range(20)))

    assert len(pids) == 20
