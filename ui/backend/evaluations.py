"""What was measured on all runs: read once, and again only where a file has changed."""

import threading
from pathlib import Path

from pydantic import ValidationError

from engine.evaluation.contract import EvaluationResult, evaluation_file
from engine.runs.store import RunStore
from ui.backend.run_reader import RunReader
from ui.tabs.chat.choice import FINAL, FINAL_WORDS
from ui.views.evaluation import MeasuredRun

_NEWEST_RUNS = 300


class MeasuredRuns:
    """Reads the evaluations of one store.

    Args:
        runs: The store.
        reader: Knows what runs are called.
    """

    def __init__(self, runs: RunStore, reader: RunReader) -> None:
        self._runs = runs
        self._reader = reader
        self._lock = threading.Lock()  # guards _known: handlers run in many threads
        self._known: dict[Path, tuple[tuple[int, int], EvaluationResult | None]] = {}

    def read(self, run_id: str, checkpoint: str | None) -> EvaluationResult | None:
        """What was measured last on one state of a run; None where nothing was."""
        return self._read(evaluation_file(self._runs.get(run_id).folder.path, checkpoint))

    def stamp(self, run_id: str, checkpoint: str | None) -> str:
        """Changes with every new measurement of it."""
        return str(_stamp(evaluation_file(self._runs.get(run_id).folder.path, checkpoint)))

    def across(self) -> list[MeasuredRun]:
        """Every state of every run that was measured, the newest run first."""
        found = []
        for run in self._runs.list()[:_NEWEST_RUNS]:
            folder = evaluation_file(run.folder.path, None).parent
            for file in sorted(folder.glob("*.json")):
                result = self._read(file)
                if result is None or "tuned" not in result.losses:
                    continue
                observed = self._reader.observe(run.id)
                data = observed.config.dataset.source if observed.config is not None else ""
                state = FINAL_WORDS if file.stem == FINAL else file.stem
                found.append(MeasuredRun(run.id, file.stem, observed.title, state, Path(data).name, result))
        return found

    def _read(self, file: Path) -> EvaluationResult | None:
        stamp = _stamp(file)
        with self._lock:
            known = self._known.get(file)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            result = EvaluationResult.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            result = None
        with self._lock:
            self._known[file] = (stamp, result)
        return result


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
