"""Ask a helper process until its answer is no longer wanted: cancel the request, and end a process that does not obey."""

import threading
from collections.abc import Callable

from engine.processes.json_lines import JsonLinesProcess
from engine.processes.messages import CancelledRequestError, JsonObject

_LOOK_SECONDS = 0.2
_OBEYS_WITHIN_SECONDS = 3.0


def ask_until_stopped(
    process: JsonLinesProcess,
    method: str,
    params: JsonObject,
    stopped: threading.Event,
    on_progress: Callable[[JsonObject], None],
) -> JsonObject:
    """Ask a process, and end it within seconds once the answer is no longer wanted.

    Args:
        process: Asked once; no longer there afterwards where it did not obey the cancel.
        method: Handler of the worker.
        params: What the handler gets.
        stopped: Set by another thread that wants no more of it.
        on_progress: Gets each progress report.

    Raises:
        EngineError: As raised by the handler, of the same class.
        CancelledRequestError: If it was stopped.
        WorkerError: If the process ended before it answered.
    """
    number = process.reserve_id()
    answered = threading.Event()

    def watch() -> None:
        while not answered.is_set():
            if stopped.wait(_LOOK_SECONDS):
                process.cancel(number)
                if not answered.wait(_OBEYS_WITHIN_SECONDS):
                    process.close(timeout_seconds=0.0)
                return

    watcher = threading.Thread(target=watch, name="stop-watch", daemon=True)
    watcher.start()
    try:
        for answer in process.stream(method, params, request_id=number):
            if "result" in answer:
                result: JsonObject = answer["result"]
                return result
            on_progress(answer["progress"])
    except Exception as error:
        if stopped.is_set():
            raise CancelledRequestError() from error
        raise
    finally:
        answered.set()
        watcher.join()
    raise CancelledRequestError()
