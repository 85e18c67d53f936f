"""Passes over whole datasets, in the background: one for each question, shared by every page that asks it."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.config.training import TrainingConfig
from engine.data.report import CheckProgress, DatasetReport
from engine.errors import EngineError
from engine.inspector.session import Inspector
from engine.processes.json_lines import CancelledRequestError
from ui.errors import UNEXPECTED
from ui.form import model_of

_log = logging.getLogger(__name__)
_REMEMBERED = 16


@dataclass(frozen=True)
class CheckQuestion:
    """What a check depends on."""

    dataset: DatasetConfig
    model: ModelConfig | None
    max_length: int
    seed: int

    @property
    def key(self) -> str:
        model = self.model.model_dump_json() if self.model is not None else ""
        return f"{self.dataset.model_dump_json()}|{model}|{self.max_length}|{self.seed}"


def question_of(mapping: Mapping[str, Mapping[str, Any]]) -> CheckQuestion | None:
    """The question that a form's values ask; None while no dataset is named rightly."""
    try:
        dataset = DatasetConfig.model_validate(mapping["dataset"])
    except ValueError:
        return None
    given = mapping.get("training", {})
    try:
        lengths = TrainingConfig.model_validate({name: given[name] for name in ("max_length", "seed") if name in given})
    except ValueError:
        lengths = TrainingConfig()  # the panel says what is wrong with them
    return CheckQuestion(dataset, model_of(mapping), lengths.max_length, lengths.seed)


@dataclass
class RunningCheck:
    """How far one check has come, and its answer once it is there."""

    question: CheckQuestion
    progress: CheckProgress | None = None
    report: DatasetReport | None = None
    error: EngineError | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_done(self) -> bool:
        return self.report is not None or self.error is not None


class DatasetChecks:
    """Starts checks, and remembers the latest answers."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._checks: OrderedDict[str, RunningCheck] = OrderedDict()
        self._lock = threading.Lock()  # guards _checks: handlers of many pages ask at once

    def ask(self, question: CheckQuestion) -> RunningCheck:
        """Get the check of this question, started now unless it runs or is answered already."""
        with self._lock:
            check = self._checks.get(question.key)
            if check is None or check.error is not None:
                check = RunningCheck(question)
                self._checks[question.key] = check
                while len(self._checks) > _REMEMBERED:
                    self._checks.popitem(last=False)[1].stop.set()
                threading.Thread(target=self._work, args=(check,), name="dataset-check", daemon=True).start()
            self._checks.move_to_end(question.key)
            return check

    def find(self, question: CheckQuestion) -> RunningCheck | None:
        """The check of this question, if it was ever asked."""
        with self._lock:
            return self._checks.get(question.key)

    def _work(self, check: RunningCheck) -> None:
        def note(progress: CheckProgress) -> None:
            if check.stop.is_set():
                raise CancelledRequestError
            check.progress = progress

        question = check.question
        try:
            check.report = self._inspector.check(
                question.dataset,
                question.model,
                question.max_length,
                seed=question.seed,
                on_progress=note,
            )
        except EngineError as error:
            check.error = error
        except Exception:
            _log.exception("a dataset check failed")
            check.error = UNEXPECTED
