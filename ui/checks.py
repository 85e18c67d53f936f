"""Passes over whole datasets, in the background: one for each question, shared by every page that asks it."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.config.training import TrainingConfig
from engine.data.report import CheckProgress, DatasetReport
from engine.data.source_name import is_on_hub
from engine.errors import EngineError
from engine.inspector.session import Inspector
from engine.processes.json_lines import CancelledRequestError
from ui.errors import explained
from ui.form import model_of

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
    waits: bool = False  # for a person's word, because reading every row fetches the dataset from the Hub
    progress: CheckProgress | None = None
    report: DatasetReport | None = None
    error: EngineError | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def fetches(self) -> bool:
        """Whether rows come from the Hub."""
        return _fetches(self.question.dataset)

    @property
    def is_done(self) -> bool:
        return self.report is not None or self.error is not None

    @property
    def is_under_way(self) -> bool:
        return not self.waits and not self.is_done

    @property
    def was_stopped(self) -> bool:
        return isinstance(self.error, CancelledRequestError)


class DatasetChecks:
    """Starts checks, and remembers the latest answers.

    A dataset of the Hub is read from end to end only after a person has asked for it with `read`. What was stopped, or
    failed, stays so until then as well.
    """

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._checks: OrderedDict[str, RunningCheck] = OrderedDict()
        self._fetched: set[str] = set()  # datasets of the Hub that a person wanted to be read
        self._lock = threading.Lock()  # guards the two above: handlers of many pages ask at once

    def ask(self, question: CheckQuestion) -> RunningCheck:
        """Get the check of this question, started now unless there is one already or it needs a person's word."""
        with self._lock:
            check = self._checks.get(question.key)
            waits = _fetches(question.dataset) and _identity(question.dataset) not in self._fetched
            if check is None or (check.waits and not waits):
                check = self._begin(RunningCheck(question, waits=waits))
            self._checks.move_to_end(question.key)
            return check

    def read(self, question: CheckQuestion) -> RunningCheck:
        """Read all rows now, because a person says so, whatever came of it before."""
        with self._lock:
            self._fetched.add(_identity(question.dataset))
            check = self._checks.get(question.key)
            if check is None or not check.is_under_way:
                check = self._begin(RunningCheck(question))
            return check

    def stop(self, question: CheckQuestion) -> None:
        """Stop the check of this question; it stays stopped."""
        with self._lock:
            self._fetched.discard(_identity(question.dataset))
            check = self._checks.get(question.key)
        if check is None or not check.is_under_way:
            return
        check.stop.set()
        if check.fetches:
            self._inspector.stop_fetching()

    def find(self, question: CheckQuestion) -> RunningCheck | None:
        """The check of this question, if it was ever asked."""
        with self._lock:
            return self._checks.get(question.key)

    def _begin(self, check: RunningCheck) -> RunningCheck:
        self._checks[check.question.key] = check
        self._checks.move_to_end(check.question.key)
        while len(self._checks) > _REMEMBERED:
            self._checks.popitem(last=False)[1].stop.set()
        if not check.waits:
            threading.Thread(target=self._work, args=(check,), name="dataset-check", daemon=True).start()
        return check

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
        except Exception as error:
            check.error = CancelledRequestError() if check.stop.is_set() else explained(error)


def _fetches(dataset: DatasetConfig) -> bool:
    return any(is_on_hub(source) for source in (dataset.source, *dataset.mix))


def _identity(dataset: DatasetConfig) -> str:
    """What is fetched, whichever way it is read."""
    return dataset.model_dump_json(include={"source", "subset", "split", "revision", "mix"})
