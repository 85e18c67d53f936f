"""Messages between us and our helper processes: one JSON object per line, over stdio.

    → {"id": 7, "method": "render", "params": {…}}
    ← {"id": 7, "progress": {…}}            any number of times
    ← {"id": 7, "result": {…}}              or {"id": 7, "error": {"what": …, "fix": …, "kind": "DatasetError"}}
    ← {"id": 7, "turn": true}               request 7 is worked on from here until another one's turn
    ← {"id": 7, "subject": "…"}             what request 7 works with, to be remembered if it ends the process
    ← {"ready": true}                       the worker's imports are over
    → {"cancel": 7}                         asks the handler of request 7 to end early
    → {"withdraw": 7}                       drops request 7 where it has not begun

`json_lines` is the end that asks, `answering` the end that answers.
"""

from typing import Any

import engine.errors
from engine.errors import EngineError, WorkerError

JsonObject = dict[str, Any]


class CancelledRequestError(EngineError):
    """The caller asked for an early end."""

    def __init__(self) -> None:
        super().__init__("The request was stopped.", "Ask again when you need it.")


class ProcessEndedError(WorkerError):
    """The process ended before it answered.

    Args:
        what: The fact, for people.
        fix: What they can do.
        exit_code: Of the process, negative for a signal; None while it is not known.
        at_fault: Whether it was working on this very request; others can be asked again.
        subject: What the request worked with, as its handler named it.
    """

    def __init__(self, what: str, fix: str, exit_code: int | None, *, at_fault: bool = True, subject: str = "") -> None:
        super().__init__(what, fix)
        self.exit_code = exit_code
        self.at_fault = at_fault
        self.subject = subject


class NotBegunError(WorkerError):
    """The worker is busy with one step of another request, and this request was taken back."""

    def __init__(self) -> None:
        super().__init__("The helper process is busy.", "Ask again when it is free.")


def error_to_json(error: EngineError) -> JsonObject:
    """Return an error as the `error` of an answer."""
    shown: JsonObject = {"kind": type(error).__name__, "what": error.what, "fix": error.fix}
    if isinstance(error, engine.errors.ConfigError):
        shown["problems"] = [list(problem) for problem in error.problems]
    return shown


def error_from_json(value: JsonObject) -> EngineError:
    """Return the error of an answer, as the handler raised it."""
    if value["kind"] == "ConfigError":
        return engine.errors.ConfigError([engine.errors.Problem(*problem) for problem in value["problems"]])
    if value["kind"] == "CancelledRequestError":
        return CancelledRequestError()
    known = getattr(engine.errors, value["kind"], WorkerError)
    error_class = known if isinstance(known, type) and issubclass(known, EngineError) else WorkerError
    return error_class(value["what"], value["fix"])
