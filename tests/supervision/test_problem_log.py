import logging

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.supervision.states import ProblemLog


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_repeated_problem_is_logged_once_for_each_action(caplog):
    problems = ProblemLog()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with problems.guard("run-1", "could not be looked at"):
                raise StorageError("The disk is full.", "Free some space.")
            with problems.guard("run-1", "could not be started"):
                raise OSError(5, "Input/output error")

    assert log_lines(caplog) == [
        "run-1 could not be looked at: The disk is full. Free some space.",
        "run-1 could not be started: [Errno 5] Input/output error",
    ]


def test_what_is_wrong_with_our_own_code_is_not_hidden():
    with pytest.raises(KeyError), ProblemLog().guard("run-1", "could not be looked at"):
        raise KeyError("a mistake")
