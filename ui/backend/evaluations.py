"""The evaluations of all runs: read once, and again only where a file has changed."""

from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from engine.evaluation.contract import EvaluationResult, evaluation_file
from engine.runs.store import RunStore
from ui.backend.background import Cache, stamp
from ui.backend.run_reader import FINAL, FINAL_WORDS, RunReader

_NEWEST_RUNS = 300
_REMEMBERED = 400


class MeasuredRun(NamedTuple):
    """One line of the table across runs."""

    run_id: str
    checkpoint: str  # "final", or its name
    name: str
    state: str  # the same in words
    data: str
    result: EvaluationResult


class Evaluations:
    """Reads the evaluations of one store.

    Args:
        runs: The store.
        reader: Knows the names of runs.
    """

    def __init__(self, runs: RunStore, reader: RunReader) -> None:
        self._runs = runs
        self._reader = reader
        self._cache: Cache[EvaluationResult | None] = Cache(_REMEMBERED)

    def read(self, run_id: str, checkpoint: str | None) -> EvaluationResult | None:
        """Return the newest evaluation of a run or a checkpoint; None where there is none."""
        return self._read(self._file(run_id, checkpoint))

    def stamp(self, run_id: str, checkpoint: str | None) -> str:
        """Return what changes with every new evaluation of it."""
        return _stamp(self._file(run_id, checkpoint))

    def across(self) -> list[MeasuredRun]:
        """Return the evaluations of every run and checkpoint, the newest run first."""
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

    def _file(self, run_id: str, checkpoint: str | None) -> Path:
        return evaluation_file(self._runs.get(run_id).folder.path, checkpoint)

    def _read(self, file: Path) -> EvaluationResult | None:
        def read() -> EvaluationResult | None:
            try:
                return EvaluationResult.model_validate_json(file.read_bytes())
            except (OSError, ValidationError):
                return None

        return self._cache.get((file, _stamp(file)), read)


def _stamp(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return ""
    return stamp(status.st_mtime_ns, status.st_size)
