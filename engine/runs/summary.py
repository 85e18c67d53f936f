"""A run in one row: what lists show and what `loratory show` prints; the rows of all runs, quickly; search, order and CSV."""

import contextlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel

from loratory.engine.config.load import setting_names
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import EngineError, StorageError
from loratory.engine.files import read_model, size_and_time, write_atomically
from loratory.engine.hardware.cuda import GPU_READINGS
from loratory.engine.runs import provenance as origin
from loratory.engine.runs.control import RunNotes, read_notes
from loratory.engine.runs.history.run_history import RunHistory, read_history
from loratory.engine.runs.history.steps import COLUMNS
from loratory.engine.runs.names import run_label
from loratory.engine.runs.run import EVENTS_FILE, FINAL_STATES, NOTES_FILE, STATE_FILE, Reason, Run, State
from loratory.engine.runs.store import RunStore, folder_size_bytes
from loratory.engine.runs.test_scores import EVALUATIONS_FOLDER, TestScore, read_test_scores

if TYPE_CHECKING:
    import pandas as pd


class RunSummary(BaseModel, frozen=True, ser_json_inf_nan="null"):
    """The figures of a run. Times are seconds since the epoch, losses mean nats per trained token, sizes bytes."""

    id: str
    owner: str
    name: str
    note: str = ""
    tags: tuple[str, ...] = ()
    star: bool = False
    project: str = ""

    state: State
    phase: str = ""  # of the worker, while it works
    reason: Reason | None = None
    cause: str = ""
    advice: str = ""
    attempt: int = 0
    resumable_step: int | None = None
    device: str = ""
    job_id: str = ""  # of its executor, which `device` then names with its host

    method: str = ""
    objective: str = ""  # of preferences, such as DPO; empty for supervised fine-tuning
    model: str = ""
    dataset: str = ""
    held_out: str = ""  # data and settings on which a held-out loss depends
    sweep: str = ""  # id that the runs of one sweep share
    swept: dict[str, str] = {}  # values by setting in which they differ

    created: float = 0.0
    started: float | None = None
    ended: float | None = None

    steps: int = 0
    total_steps: int | None = None
    final_loss: float | None = None  # of the newest logged step
    base_eval_loss: float | None = None  # held out, before the first update
    eval_loss: float | None = None  # held out, newest
    best_eval_loss: float | None = None
    best_step: int | None = None
    is_rewarded: bool = False  # held-out losses are negative rewards
    preference_accuracy: float | None = None  # on held-out pairs, newest
    trained_tokens: int = 0
    tokens_per_second: float | None = None  # while training; loading, evaluations and saves do not count
    trainable_parameters: int | None = None
    peak_memory_bytes: int | None = None  # reserved on CUDA, resident on CPU
    predicted_bytes: int | None = None  # its counterpart in the estimate
    measured_memory: origin.MemoryFigures | None = None
    predicted_memory: origin.MemoryFigures = origin.MemoryFigures()
    tests: dict[str, TestScore] = {}  # the newest of each test set
    size_bytes: int = 0  # of the run's folder
    energy_joules: float | None = None  # as the GPUs measured it

    @property
    def label(self) -> str:
        """Its name in lists, in which no two runs look the same."""
        return run_label(self.name, self.id)

    @property
    def loss_group(self) -> tuple[str, str, str]:
        """What runs have in common whose held-out losses are comparable: objective, model, and held-out rows."""
        return self.objective, self.model, self.held_out or self.dataset

    @property
    def seconds(self) -> float | None:
        """How long it ran; None before it started, or while it still runs."""
        return None if self.started is None or self.ended is None else max(self.ended - self.started, 0.0)


def summarize(run: Run, history: RunHistory | None = None) -> RunSummary:
    """Return the row of one run; reads its log unless the caller passes its content."""
    history = read_history(run.folder.events) if history is None else history
    provenance = origin.read_provenance(run.folder)
    notes = read_notes(run.folder)
    values: dict[str, Any] = {
        "id": run.id,
        "owner": run.owner,
        **notes.model_dump(exclude={"name"}),
        **provenance.model_dump(include={"created", "sweep", "swept"}),
        "predicted_bytes": provenance.predicted_memory.of_run,
        "predicted_memory": provenance.predicted_memory,
        "size_bytes": folder_size_bytes(run.folder.path),
        "tests": read_test_scores(run.folder.path),
        **_of_config(run, provenance, notes),
        **run.folder.read_state().model_dump(include=set(RunSummary.model_fields)),
        **_of_history(history),
    }
    return RunSummary.model_validate(values)


def _of_config(run: Run, provenance: origin.Provenance, notes: RunNotes) -> dict[str, Any]:
    names = {"title", "method", "objective", "model", "dataset", "held_out"}
    facts: dict[str, Any] = provenance.model_dump(include=names)
    if not provenance.title:  # it was lost
        try:
            facts = origin.describe_config(run.folder.read_config())
        except EngineError:  # lost, edited by hand, or of another version: the run is listed all the same
            facts["title"] = "(configuration unreadable)"
    title = facts.pop("title")
    if facts.get("held_out"):
        facts["held_out"] = f"{provenance.dataset_fingerprint or facts['dataset']} {facts['held_out']}"
    return {"name": notes.name or title, **facts}


def _of_history(history: RunHistory) -> dict[str, Any]:
    base, best = history.base_eval, history.best_eval
    tuned = history.tuned_evals
    figures = origin.measured_figures(history)
    return {
        "phase": history.status.phase if history.status is not None else "",
        "steps": history.last_step,
        "total_steps": history.total_steps,
        "final_loss": history.steps.last("loss"),
        "base_eval_loss": base.eval_loss if base is not None else None,
        "eval_loss": tuned[-1].eval_loss if tuned else None,
        "best_eval_loss": best.eval_loss if best is not None else None,
        "best_step": best.step if best is not None else None,
        "is_rewarded": any(point.reward is not None for point in history.evals[:1]),
        "preference_accuracy": tuned[-1].preference_accuracy if tuned else None,
        "trained_tokens": int(history.steps.last("trained_tokens") or 0),
        "tokens_per_second": history.mean_tokens_per_second(),
        "trainable_parameters": history.parameters.trainable if history.parameters is not None else None,
        "peak_memory_bytes": figures.of_run,
        "measured_memory": None if history.memory is None else figures,
    }


# When state, notes and evaluations changed, and bytes of the log: the same mean the same row.
_Stamp = tuple[int, int, int, int]


class Glance(NamedTuple):
    """The rows that could be read in the given time."""

    rows: list[RunSummary]  # newest first
    unread: int  # runs that no server has seen yet, and that are missing


class _IndexEntry(BaseModel, frozen=True):
    stamp: _Stamp
    summary: RunSummary


class _IndexFile(BaseModel):
    runs: dict[str, _IndexEntry]


class RunIndex:
    """Rows of the runs of one owner; one for a server, shared by all its pages.

    The rows of ended runs are kept in the home's cache, which may be deleted at any time. Histories are read as a whole
    unless the caller, who follows them anyway, gives them by `history_of`.
    """

    def __init__(self, store: RunStore, history_of: Callable[[Run], RunHistory] | None = None) -> None:
        self._store = store
        self._history_of = history_of or (lambda run: read_history(run.folder.events))
        self._path = store.home.cache / "runs" / f"{store.owner}.json"
        self._reading = threading.Lock()  # guards everything below: several pages may ask at once
        index = read_model(self._path, _IndexFile)
        self._entries = index.runs if index is not None else {}  # of ended runs, by id
        self._read_ids: set[str] = set()  # runs that were read before
        self._has_news = False  # what the cache does not know yet

    def summaries(self) -> list[RunSummary]:
        """All rows, newest first."""
        return self.glance(patience_seconds=math.inf).rows

    def glance(self, patience_seconds: float) -> Glance:
        """Return all rows that were read before, and as many more as can be read in that time, newest first."""
        spent_seconds, unread, rows = 0.0, 0, list[RunSummary]()
        with self._reading:
            runs = self._store.list()
            for run in runs:
                is_new = run.id not in self._entries and run.id not in self._read_ids
                if is_new and spent_seconds > patience_seconds:
                    unread += 1
                    continue
                began = time.monotonic()
                rows.append(self._row(run))
                spent_seconds += time.monotonic() - began if is_new else 0.0
            if not unread and (self._has_news or len(self._entries) > len(runs)):
                existing = {run.id for run in runs}
                self._entries = {run_id: entry for run_id, entry in self._entries.items() if run_id in existing}
                self._has_news = False
                with contextlib.suppress(StorageError):  # without the cache, only time is lost
                    index = _IndexFile(runs=self._entries)
                    write_atomically(self._path, index.model_dump_json(), makes_folder=True)
            return Glance(rows, unread)

    def summary(self, run: Run) -> RunSummary:
        """Return the row of one run, from the cache if it is still valid."""
        with self._reading:
            return self._row(run)

    def _row(self, run: Run) -> RunSummary:
        stamp, entry = _stamp_of(run), self._entries.get(run.id)
        if entry is not None and entry.stamp == stamp:
            return entry.summary
        summary = summarize(run, self._history_of(run))
        self._read_ids.add(run.id)
        if summary.state in FINAL_STATES:
            self._entries[run.id] = _IndexEntry(stamp=stamp, summary=summary)
            self._has_news = True
        return summary


_STAMPED = (STATE_FILE, NOTES_FILE, EVALUATIONS_FOLDER, EVENTS_FILE)


def _stamp_of(run: Run) -> _Stamp:
    folder = os.fspath(run.folder.path)  # four looks at each of thousands of runs: quicker than paths
    sizes_and_times = (size_and_time(f"{folder}/{name}") for name in _STAMPED)
    (_, state_modified), (_, notes_modified), (_, evaluations_modified), (events_bytes, _) = sizes_and_times
    return state_modified, notes_modified, evaluations_modified, events_bytes


SortKey = Literal[
    "created", "name", "state", "method", "model", "steps", "final_loss", "eval_loss", "tokens_per_second",
    "peak_memory_bytes", "seconds", "size_bytes",
]  # fmt: skip


@dataclass(frozen=True)
class RunQuery:
    """A query for runs, with their order. Empty fields restrict nothing."""

    terms: str = ""  # each must occur in the id, name, note, tags, project, model, dataset, method or state
    states: Collection[State] = ()
    methods: Collection[str] = ()
    models: Collection[str] = ()
    tags: Collection[str] = ()
    projects: Collection[str] = ()
    with_star: bool = False
    sort: str = "created"  # a SortKey, or a test set
    descending: bool = True


def select_runs(summaries: Sequence[RunSummary], query: RunQuery) -> list[RunSummary]:
    """Return the rows of a query, in its order; rows without a value for the order come last.

    Held-out losses are ordered among comparable ones: the group with the first of the summaries comes first.
    """
    terms = query.terms.casefold().split()
    matches = [summary for summary in summaries if _matches(summary, query, terms)]
    sortable = [(value, summary) for summary in matches if (value := _sort_value(summary, query.sort)) is not None]
    sortable.sort(key=lambda pair: pair[0], reverse=query.descending)
    if query.sort == "eval_loss":
        groups = list(dict.fromkeys(summary.loss_group for summary in matches))
        sortable.sort(key=lambda pair: groups.index(pair[1].loss_group))
    without = [summary for summary in matches if _sort_value(summary, query.sort) is None]
    return [summary for _, summary in sortable] + without


def differing_settings(configs: Mapping[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """Return the values by run id of the dotted settings that differ, in the order of the form; none of section `run`."""
    plain = {run_id: config.model_dump(mode="json") for run_id, config in configs.items()}
    differences = {}
    for name in setting_names():
        section, _, field = name.partition(".")
        values = {run_id: config[section][field] for run_id, config in plain.items()}
        if section != "run" and any(value != next(iter(values.values())) for value in values.values()):
            differences[name] = values
    return differences


def common_tests(summaries: Sequence[RunSummary], most: int | None = 3) -> list[str]:
    """Return the test sets that most of the runs answered, the commonest first."""
    return [test for test, _ in Counter(test for row in summaries for test in row.tests).most_common(most)]


def sort_keys(summaries: Sequence[RunSummary] = ()) -> tuple[str, ...]:
    """Return what runs can be ordered by."""
    return (*get_args(SortKey), *common_tests(summaries, None))


def _matches(summary: RunSummary, query: RunQuery, terms: Sequence[str]) -> bool:
    fields = ((query.states, summary.state), (query.methods, summary.method), (query.models, summary.model),
              (query.projects, summary.project), ((True,) if query.with_star else (), summary.star))  # fmt: skip
    if any(accepted and value not in accepted for accepted, value in fields):
        return False
    names = (summary.id, summary.name, summary.note, summary.project, *summary.tags)
    texts = (*names, summary.model, summary.dataset, summary.method, summary.objective, summary.state)
    text = "\n".join(texts).casefold()
    return set(query.tags) <= set(summary.tags) and all(term in text for term in terms)


def _sort_value(summary: RunSummary, key: str) -> float | str | None:
    if (test := summary.tests.get(key)) is not None:
        return test.score
    value: float | str | None = getattr(summary, key, None)
    return value.casefold() if isinstance(value, str) else value


def summaries_csv(summaries: Sequence[RunSummary]) -> str:
    """Return one line for each run, with every column."""
    import pandas as pd  # not before a table is asked for: commands start without it

    rows = [summary.model_dump(mode="python", exclude={"tests"}) | _test_cells(summary) for summary in summaries]
    tests = (f"{test}{part}" for test in common_tests(summaries, None) for part in ("", " low", " high"))
    names = (*(name for name in RunSummary.model_fields if name != "tests"), *tests)
    table = pd.DataFrame(rows, columns=list(names), dtype=object).rename(columns=_cell_text)
    return str(table.map(_cell).to_csv(index=False, lineterminator="\n"))


def _test_cells(summary: RunSummary) -> dict[str, float]:
    values = (
        {name: test.score, f"{name} low": test.low, f"{name} high": test.high} for name, test in summary.tests.items()
    )
    return {name: value for cells in values for name, value in cells.items()}


def steps_table(history: RunHistory) -> "pd.DataFrame":
    """Return a row for each logged step; held-out losses and readings of GPUs are at the steps where they were measured."""
    import pandas as pd

    table = pd.DataFrame({column: history.steps.column(column) for column in COLUMNS})
    held_out = {point.step: point.eval_loss for point in history.evals if not point.adapter_disabled}
    table["eval_loss"] = table["step"].map(held_out).astype(float)
    for name in GPU_READINGS:
        table[name] = table["step"].map(dict(zip(*history.steps.metric(name), strict=True))).astype(float)
    return table.astype(dict.fromkeys(("step", "tokens", "trained_tokens", "memory_bytes"), "Int64"))


def _cell(value: object) -> object:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, tuple):
        return " ".join(_cell_text(item) for item in value)
    return _cell_text(value) if isinstance(value, str) else value


def _cell_text(value: object) -> str:
    text = str(value)
    # Spreadsheets execute cells that look like formulas; names and notes come from people.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
