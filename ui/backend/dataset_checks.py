"""Background passes over whole datasets: one per question, shared by all pages."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from loratory.engine.config.load import SectionType
from loratory.engine.config.run import DataFormatName, DatasetConfig, ModelConfig, RunConfig
from loratory.engine.config.training import TrainingConfig
from loratory.engine.config.vision import VisionConfig
from loratory.engine.data.contract import CheckProgress, DatasetReport, RowLengths
from loratory.engine.data.hub import reads_from_hub
from loratory.engine.errors import EngineError
from loratory.engine.inspector.session import Inspector
from loratory.engine.processes.messages import CancelledRequestError
from loratory.ui.backend.background import as_engine_error

V = TypeVar("V")
_MOST_CHECKS = 16
_PAGES = 64  # whose questions are remembered
_UNWANTED_SECONDS = 150.0  # until a check ends that no page looks at; a hidden page looks once a minute


@dataclass(frozen=True)
class CheckQuestion:
    """All inputs of a check."""

    dataset: DatasetConfig
    model: ModelConfig | None
    max_length: int
    seed: int
    vision: VisionConfig = field(default_factory=VisionConfig)  # sizes of images alone

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Return the question of a whole configuration."""
        training = config.training
        return cls(config.dataset, config.model, training.max_length, training.seed, config.vision.pixels)

    @property
    def key(self) -> str:
        model = self.model.model_dump_json() if self.model is not None else ""
        return f"{self.dataset.model_dump_json()}|{model}|{self.max_length}|{self.seed}|{self.vision.model_dump_json()}"

    def is_compatible(self, other: Self) -> bool:
        """Return whether one form can ask both: without a model while its tokenizer is downloaded."""
        same = replace(self, model=None) == replace(other, model=None)
        return same and (self.model is None or other.model is None or self.model == other.model)

    def has_lengths_of(self, other: Self) -> bool:
        """Return whether both are about the same rows, the same tokenizer and images of the same sizes."""
        if self.model is None or other.model is None:
            return False
        has_same_tokenizer = (self.model.id, self.model.revision) == (other.model.id, other.model.revision)
        same = (self.dataset, self.seed, self.vision) == (other.dataset, other.seed, other.vision)
        return has_same_tokenizer and same


def question_of(mapping: Mapping[str, Mapping[str, Any]]) -> CheckQuestion | None:
    """Return the question of a form's values; None without a valid dataset."""
    dataset, training = _read(DatasetConfig, mapping["dataset"]), mapping.get("training", {})
    if dataset is None:
        return None
    values = {name: training[name] for name in ("max_length", "seed") if name in training}
    lengths = _read(TrainingConfig, values) or TrainingConfig()  # the panel shows what is wrong with them
    vision = _read(VisionConfig, mapping.get("vision", {})) or VisionConfig()
    return CheckQuestion(dataset, model_of(mapping), lengths.max_length, lengths.seed, vision.pixels)


def model_of(mapping: Mapping[str, Mapping[str, Any]]) -> ModelConfig | None:
    """Return the model section alone, where it is complete and valid."""
    return _read(ModelConfig, mapping["model"])


def _read(kind: type[SectionType], values: Mapping[str, Any]) -> SectionType | None:
    try:
        return kind.model_validate(dict(values))
    except ValueError:
        return None


@dataclass
class RunningCheck:
    """A check with its progress, and its report once it is done."""

    question: CheckQuestion
    waits: bool = False  # for a person's request: reading all rows downloads the dataset from the Hub
    progress: CheckProgress | None = None
    report: DatasetReport | None = None
    error: EngineError | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    wanted_until: float = field(default_factory=lambda: time.monotonic() + _UNWANTED_SECONDS)

    def touch(self) -> None:
        """Note that a page looks at it."""
        self.wanted_until = time.monotonic() + _UNWANTED_SECONDS

    @property
    def fetches(self) -> bool:
        """Whether rows come from the Hub."""
        return reads_from_hub(self.question.dataset)

    @property
    def is_done(self) -> bool:
        return self.report is not None or self.error is not None

    @property
    def is_under_way(self) -> bool:
        return not self.waits and not self.is_done

    @property
    def was_stopped(self) -> bool:
        return isinstance(self.error, CancelledRequestError)


def lengths_stamp(check: RunningCheck) -> str:
    """Return a stamp of a dataset's known row lengths."""
    lengths = check.report.row_lengths if check.report is not None else None
    return f"{lengths.count}-{lengths.longest}-{abs(hash(lengths)):x}" if lengths is not None else ""


class DatasetChecks:
    """Starts checks, and remembers the latest answers.

    A dataset of the Hub is read completely only after a person has asked for it with `read`; so is one whose check was
    stopped or failed.
    """

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._checks: OrderedDict[str, RunningCheck] = OrderedDict()
        self._requested_hub_datasets: set[str] = set()  # datasets of the Hub that a person asked for
        self._errors: OrderedDict[str, EngineError] = OrderedDict()  # why no row could be shown, by key
        self._formats: OrderedDict[str, DataFormatName] = OrderedDict()  # of datasets that were opened
        self._questions: OrderedDict[str, dict[str, CheckQuestion]] = OrderedDict()  # what each page waits for, by key
        self._lock = threading.Lock()  # guards the five above: handlers of many pages ask at once

    def request(self, question: CheckQuestion, page: str = "") -> RunningCheck:
        """Return the check of this question; start it unless it exists or needs a request by the user.

        Checks of the same page for another form end, unless another page waits for them.
        """
        with self._lock:
            is_unused = self._end_outdated(question, page) if page else False
        if is_unused:
            self._inspector.stop_fetching()
        with self._lock:
            check = self._find(question)
            waits = reads_from_hub(question.dataset) and _identity(question.dataset) not in self._requested_hub_datasets
            if check is None or (check.waits and not waits):
                check = self._begin(RunningCheck(question, waits=waits))
            self._checks.move_to_end(question.key)
            check.touch()
            return check

    def read(self, question: CheckQuestion) -> RunningCheck:
        """Read all rows on the user's request, also after a stop or an error."""
        with self._lock:
            self._requested_hub_datasets.add(_identity(question.dataset))
            check = self._checks.get(question.key)
            if check is None or not check.is_under_way:
                check = self._begin(RunningCheck(question))
            check.touch()
            return check

    def stop(self, question: CheckQuestion) -> None:
        """Stop the check of this question; it stays stopped."""
        with self._lock:
            self._requested_hub_datasets.discard(_identity(question.dataset))
            check = self._checks.get(question.key)
        if check is None or not check.is_under_way:
            return
        check.stop.set()
        if check.fetches:
            self._inspector.stop_fetching()

    def find(self, question: CheckQuestion) -> RunningCheck | None:
        """Return the check of this question; None if it was never started."""
        with self._lock:
            if check := self._find(question):
                check.touch()
            return check

    def forget(self, dataset: DatasetConfig) -> None:
        """Forget the reports of a dataset, whose rows may have changed; the next page that looks reads them again."""
        with self._lock:
            for key, check in list(self._checks.items()):
                if check.is_done and _identity(check.question.dataset) == _identity(dataset):
                    del self._checks[key]

    def note_refused(self, question: CheckQuestion, error: EngineError) -> None:
        """Remember why no row of a dataset could be shown, until one can."""
        with self._lock:
            _put_last(self._errors, question.key, error, _MOST_CHECKS)

    def note_opened(self, question: CheckQuestion, format_: DataFormatName) -> None:
        """Remember the format of a dataset whose rows can be shown."""
        with self._lock:
            self._errors.pop(question.key, None)
            _put_last(self._formats, _form_of(question.dataset), format_, _PAGES)

    def format_of(self, question: CheckQuestion) -> DataFormatName | None:
        """Return the format of a dataset; None before it was opened."""
        with self._lock:
            return self._formats.get(_form_of(question.dataset))

    def row_lengths(self, question: CheckQuestion) -> RowLengths | None:
        """Return the lengths of the rows, once they were read with this tokenizer; those of another max_length are the same."""
        with self._lock:
            exact = self._checks.get(question.key)
            checks = [check for check in reversed(self._checks.values()) if check.question.has_lengths_of(question)]
        reports = (check.report for check in (exact, *checks) if check is not None)
        return next((report.row_lengths for report in reports if report is not None), None)

    def lengths_of(self, stamp: str) -> RowLengths | None:
        """Return known lengths by their `lengths_stamp`; None if unknown."""
        with self._lock:
            reports = (check.report for check in self._checks.values() if stamp and lengths_stamp(check) == stamp)
            return next((report.row_lengths for report in reports if report is not None), None)

    def trouble(self, question: CheckQuestion) -> EngineError | None:
        """Return why a run cannot train on this, as far as its rows were read; a stop is not an error."""
        with self._lock:
            for key in (question.key, replace(question, model=None).key):
                check = self._checks.get(key)
                error = self._errors.get(key) or (check.error if check is not None else None)
                if error is not None and not isinstance(error, CancelledRequestError):
                    return error
        return None

    def _find(self, question: CheckQuestion) -> RunningCheck | None:
        """Return the check of a question, or a finished one that answers it: of another max_length, where neither cuts a row."""
        if question.key not in self._checks:
            reports = (
                check.report.at_max_length(question.max_length)
                for check in reversed(self._checks.values())
                if check.report is not None and check.question.has_lengths_of(question)
            )
            if (report := next(filter(None, reports), None)) is not None:
                self._checks[question.key] = RunningCheck(question, report=report)
        return self._checks.get(question.key)

    def _end_outdated(self, question: CheckQuestion, page: str) -> bool:
        """End the checks that no page waits for now; return whether a download from the Hub is no longer needed."""
        before = self._questions.pop(page, {})
        compatible = {key: waiting for key, waiting in before.items() if waiting.is_compatible(question)}
        _put_last(self._questions, page, {**compatible, question.key: question}, _PAGES)
        waited_for = {key for waiting in self._questions.values() for key in waiting}
        return bool(self._end(before.keys() - waited_for) - {_identity(question.dataset)})

    def _end_unwanted(self) -> None:
        """End and forget the checks that no page looks at any more; they do not count as stopped by a person."""
        with self._lock:
            now = time.monotonic()
            is_unused = bool(self._end([key for key, check in self._checks.items() if check.wanted_until <= now]))
        if is_unused:
            self._inspector.stop_fetching()

    def _end(self, keys: Iterable[str]) -> set[str]:
        """End and forget the checks of `keys`; return the datasets that no check fetches from the Hub any more."""
        checks = [self._checks.pop(key) for key in keys if key in self._checks and self._checks[key].is_under_way]
        for check in checks:
            check.stop.set()
        if any(check.fetches and check.is_under_way for check in self._checks.values()):
            return set()
        return {_identity(check.question.dataset) for check in checks if check.fetches}

    def _begin(self, check: RunningCheck) -> RunningCheck:
        self._checks[check.question.key] = check
        self._checks.move_to_end(check.question.key)
        while len(self._checks) > _MOST_CHECKS:
            self._checks.popitem(last=False)[1].stop.set()
        if not check.waits:
            threading.Thread(target=self._work, args=(check,), name="dataset-check", daemon=True).start()
        return check

    def _work(self, check: RunningCheck) -> None:
        def note(progress: CheckProgress) -> None:
            if check.wanted_until <= time.monotonic():
                self._end_unwanted()
            if check.stop.is_set():
                raise CancelledRequestError
            check.progress = progress

        question = check.question
        try:
            report = self._inspector.check(
                question.dataset, question.model, question.max_length, seed=question.seed, vision=question.vision,
                on_progress=note,
            )  # fmt: skip
            with self._lock:
                _put_last(self._formats, _form_of(question.dataset), report.format, _PAGES)
            check.report = report
        except Exception as error:
            check.error = CancelledRequestError() if check.stop.is_set() else as_engine_error(error)


def _put_last(entries: OrderedDict[str, V], key: str, value: V, most: int) -> None:
    entries[key] = value
    entries.move_to_end(key)
    while len(entries) > most:
        entries.popitem(last=False)


def _form_of(dataset: DatasetConfig) -> str:
    """Return the part of the settings that the format of the rows depends on."""
    return dataset.model_dump_json(exclude={"train_on", "eval_fraction", "max_samples", "mix"})


def _identity(dataset: DatasetConfig) -> str:
    return dataset.model_dump_json(include={"source", "subset", "split", "revision", "mix"})
