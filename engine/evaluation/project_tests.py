"""Completed runs answer the test sets of their projects, one after the other, in a process that supervisors start."""

import logging
import time
from collections.abc import Callable
from typing import get_args

from loratory.engine.accounts.limits import is_lab
from loratory.engine.chat.contract import ChatTarget
from loratory.engine.config.results import EvaluationConfig
from loratory.engine.config.run import WorkPlace
from loratory.engine.errors import DeviceError
from loratory.engine.evaluation.job import EvaluationJob, EvaluationRequest
from loratory.engine.hardware.lease import LeaseBook
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.projects import answering_lock, waiting_requests
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore

_RETRY_SECONDS = 30.0  # while a run trains on the device

_log = logging.getLogger(__name__)


def evaluate_run(home: LoratoryHome, run: Run) -> None:
    """Measure a run and its test sets, and save the result with the run; raises as `EvaluationJob.run` does."""
    target, where = ChatTarget.of_run(run.folder.path), run.folder.read_config().run.where
    target = target.model_copy(update={"where": where if where in get_args(WorkPlace) else "local"})
    request = EvaluationRequest(target=target, settings=EvaluationConfig(answered_rows=0, general_text=False))
    EvaluationJob(home.for_person(run.owner) if is_lab(home) else home, request).run()


def answer_project_tests(
    home: LoratoryHome,
    evaluate: Callable[[LoratoryHome, Run], None] = evaluate_run,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Evaluate the runs that wait for it until none does; what fails is logged, and the run stays as it is.

    A device that is in use is waited for: training comes first. Returns at once where another process answers.
    """
    lock = answering_lock(home)
    # Again after the release: a run may have been completed in between, whose own process found the lock taken.
    while waiting_requests(home) and lock.acquire(timeout_seconds=0):
        _answer_waiting(home, evaluate, pause)
        lock.release()


def _answer_waiting(
    home: LoratoryHome, evaluate: Callable[[LoratoryHome, Run], None], pause: Callable[[float], None]
) -> None:
    while waiting := waiting_requests(home):
        owner, _, run_id = waiting[0].name.partition("~")
        try:
            evaluate(home, RunStore(home, owner).get(run_id))
        except Exception as error:
            if isinstance(error, DeviceError) and LeaseBook(home).holders():
                pause(_RETRY_SECONDS)
                continue
            _log.error("%s did not answer the tests of its project: %s", run_id, error)
        waiting[0].unlink(missing_ok=True)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    answer_project_tests(LoratoryHome.locate())
