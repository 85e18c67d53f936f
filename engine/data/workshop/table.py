"""The rows of sets as tables that a page scrolls, sorts, filters and edits; a process of the inspector holds them."""

import json
from collections import Counter
from collections.abc import Generator, Mapping
from functools import lru_cache
from itertools import product
from operator import ne
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.contract import CheckProgress, SetQuestion
from loratory.engine.data.passes.check import MAX_LISTED
from loratory.engine.data.passes.reader import Pace
from loratory.engine.data.records import Record, one_line, shared_length
from loratory.engine.data.source import SetRows, SourceOptions, path_of
from loratory.engine.data.workshop import sets
from loratory.engine.data.workshop.checks.base import CheckOutcome, RowCheckReport
from loratory.engine.data.workshop.exchange import set_from
from loratory.engine.data.workshop.operations import Edit, Editor, Mark, Mask, Operation, Replace, text_of_rows
from loratory.engine.errors import DatasetError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.processes.messages import JsonObject
from loratory.engine.quantities import size

_MOST_SETS, _MOST_BYTES = 3, 256 << 20  # that are held; each text is there twice
_MOST_HITS, _MOST_SHOWN = 20, 200  # of changes, and lines of a window
_MOST_LINES = 2000  # of one part of a download
_CELL, _PARTS = 160, 6  # characters of a part of a row, and parts of it that are shown
_REPORT, _MOST_EXAMPLES = "checks.json", 3  # of the last checks, in a set's folder; and findings in a summary
_STATES = ("excluded", "held_out", "flagged", "edited")  # bits of a row's state, from the lowest


class _Rows:
    """All rows of one set, excluded ones too, with the operations that change their text."""

    def __init__(self, rows: SetRows, editor: Editor) -> None:
        self.source, self.editor, count = rows.untouched, editor, len(editor.excluded)
        self.texts, self.searched = [b""] * count, [b""] * count  # as JSON; empty for an unreadable row
        self.problems: dict[int, str] = {}  # of unreadable rows
        self.characters = np.zeros(count, np.int64)

    def read(self) -> Generator[None, None, None]:
        """Read all rows, yielding regularly to other work."""
        pace, size_bytes = Pace(), 0
        for record in self.source.records():
            size_bytes += self._put(record) if record is not None else 0
            if size_bytes > _MOST_BYTES:
                what = f"The rows of this set have more than {size(_MOST_BYTES)}, which is too much for the page."
                raise DatasetError(what, "Edit it with `loratory data edit`, or divide it.")
            if pace.turn_is_over():
                yield

    def _put(self, source: Record) -> int:
        row, record = source.row, self.editor.apply(source)
        if record is None or row >= len(self.texts):
            return 0
        text = json.dumps(record.value, ensure_ascii=False, default=str) if record.value is not None else ""
        self.problems |= {row: record.problem} if not text else {}
        self.texts[row] = text.encode(errors="backslashreplace")
        self.searched[row] = (text or record.sample()).casefold().encode(errors="backslashreplace")
        self.characters[row] = Record(row, None, record.value).size_bytes
        return len(self.texts[row])

    def edit(self, editor: Editor) -> None:
        """Take other edits; the replacements are the same."""
        before, self.editor = self.editor.edits, editor
        changed = {row for row in before.keys() | editor.edits.keys() if before.get(row) != editor.edits.get(row)}
        for record in filter(None, self.source.pick(sorted(changed)) if changed else ()):
            self.problems.pop(record.row, None)
            self._put(record)

    def value(self, row: int) -> dict[str, Any]:
        """Return a row; an unreadable one has no columns."""
        return dict(json.loads(self.texts[row] or b"{}"))

    def marks(self, operations: list[Operation]) -> NDArray[np.uint8]:
        """Return the state of each row, as bits of `_STATES`."""
        editor = Editor(operations, len(self.texts))
        flags = [o for o in operations if isinstance(o, Mark) and o.kind == "flag"]  # which no editor applies
        as_marks = [flag.model_copy(update={"kind": "exclude" if flag.text else "include"}) for flag in flags]
        edits = np.isin(np.arange(len(self.texts)), list(self.editor.edits))
        states = (editor.excluded, editor.held_out, Editor(as_marks, len(edits)).excluded, edits)
        marks = np.zeros(len(edits), np.uint8)
        for bit, state in enumerate(states):
            marks |= state.astype(np.uint8) << bit
        return marks

    def in_order(
        self, marks: NDArray[np.uint8], question: SetQuestion, scores: Mapping[int, float]
    ) -> NDArray[np.int64]:
        """Return the numbers of the rows that a question is about, from 0; in the order of scores, those without one last."""
        needle = _in_json(question.text.casefold())
        chosen = np.fromiter((needle in text for text in self.searched), np.bool_) if needle else marks >= 0
        if question.state:
            bit = _STATES.index(question.state) if question.state != "kept" else 0
            chosen &= ((marks >> bit) & 1) == (question.state != "kept")
        order = np.flatnonzero(chosen)
        keys = self.characters[order] if "characters" in question.sort else order
        if "score" in question.sort:
            keys = np.array([scores.get(row, np.nan) for row in order.tolist()])
        return order[np.argsort(-keys if question.sort.startswith("-") else keys, kind="stable")]


_Marked = tuple[_Rows, NDArray[np.uint8]]  # with the state of each


class SetTables:
    """Answers questions about the sets of one person; holds the rows of the last ones."""

    def __init__(self, home: LoratoryHome, options: SourceOptions) -> None:
        self._home, self._options = home, options
        self._author = home.owner or local_owner()
        self._held: dict[str, _Rows] = {}

    def answer(self, question: SetQuestion) -> Generator[CheckProgress | None, None, JsonObject]:
        """Answer a question, yielding regularly to other work; raises DatasetError, StorageError."""
        if question.do == "make":
            return self._make(question.dataset)
        if question.do == "list":
            return {"sets": [sets.describe(self._home, name) for name in sets.set_names(self._home)]}
        if question.do == "rename":
            sets.rename_set(self._home, question.name, question.other)
            return {}
        dataset = sets.find_set(self._home, question.name)
        if question.do == "check":
            from loratory.engine.data.workshop.checks.run import row_check_steps  # which loads a model of languages

            source = f"{SET_PREFIX}{dataset.name}@{dataset.versions[-1].name}"
            config = question.dataset.model_copy(update={"source": source, "mix": {}})
            report = yield from row_check_steps(config, self._options, question.settings, seed=question.seed)
            dataset = sets.find_set(self._home, question.name)
            write_atomically(dataset.folder / _REPORT, report.model_dump_json())
        file = dataset.folder / _REPORT
        report = _read_report(file, file.stat().st_mtime_ns) if file.is_file() else RowCheckReport()
        remedy = [_remedy(dataset, report, question)] if question.remedy else []
        try:
            operations = TypeAdapter(list[Operation]).validate_python(remedy or question.operations)
        except ValidationError as error:
            what = f"That is not an operation: {sets.reason(error)}."
            raise DatasetError(what, "Correct it, then try again.") from error
        if question.do == "apply":
            dataset.append(operations, since=question.since, author=self._author)
            dataset = sets.find_set(self._home, question.name)
        about = {"last": len(dataset.entries), "version": dataset.versions[-1].name, "rows_in_set": dataset.facts.rows}
        if question.do in ("apply", "log"):
            return {**about, "steps": dataset.history()[::-1][question.first :][: min(question.count, _MOST_SHOWN)]}
        if question.do in ("check", "found", "report"):
            return {**about, **_findings(dataset, report, is_whole=question.do == "report")}
        rows, marks = yield from self._rows(dataset, question.version)
        if question.do == "hits":
            return (yield from _hits(rows, operations))
        if question.do == "changes":
            return _changes((rows, marks), (yield from self._rows(dataset, question.other)), question)
        if question.do == "lines":
            # As an export writes them, a part at a time.
            end = min(question.first + _MOST_LINES, len(marks))
            texts = (rows.texts[row] for row in range(question.first, end) if not marks[row] & 1)
            text = b"".join(text + b"\n" for text in texts if text)
            return {"text": text.decode(), "next": end if end < len(marks) else None}
        if question.do == "row":
            row = min(question.row, len(marks)) - 1
            facts = {"problem": rows.problems.get(row, ""), "record": rows.value(row), "state": int(marks[row])}
            return {**about, "row": row + 1, **facts}
        scores = report.outcome("quality").scores
        chosen = rows.in_order(marks, question, scores)
        if question.check:
            chosen = chosen[np.isin(chosen, report.outcome(question.check).all_rows)]
        part = chosen[question.first : question.first + question.count]
        if question.do == "numbers":
            return {"numbers": (part + 1).tolist()}
        window = [
            {**_summary(rows, row, int(marks[row])), "score": scores.get(row)} for row in part[:_MOST_SHOWN].tolist()
        ]
        columns = sorted({*dataset.facts.columns, *(name for _, edit in rows.editor.edits.values() for name in edit)})
        return {**about, "count": len(chosen), "rows": window, "has_scores": bool(scores), "columns": columns[:100]}

    def _rows(self, dataset: sets.DataSet, version: str) -> Generator[None, None, _Marked]:
        """Return the rows as they are at a version, or as they are now, with their states."""
        operations = [entry.operation for entry in sets.in_force(dataset.at(version).entries)]
        editor = Editor([o for o in operations if not isinstance(o, Mark)], dataset.facts.rows)
        rows = self._held.pop(key := f"{dataset.name} {dataset.facts.created} {version}", None)
        if rows is None or rows.editor.replacements != editor.replacements:
            rows = _Rows(SetRows(dataset, self._options), editor)
            yield from rows.read()
        rows.edit(editor)
        self._held[key] = rows
        while len(self._held) > _MOST_SETS:
            del self._held[next(iter(self._held))]
        return rows, rows.marks(operations)

    def _make(self, config: DatasetConfig) -> JsonObject:
        """Make a set of a file or a sample, with a name of its own."""
        path_of(config.source.strip(), self._options.access)  # which may allow less than the person's
        return {"name": set_from(self._home, config, author=self._author, require_space=lambda _: None).name}


@lru_cache(maxsize=_MOST_SETS)
def _read_report(file: Path, changed: int) -> RowCheckReport:  # noqa: ARG001 - of another time, it is another one
    return read_model(file, RowCheckReport) or RowCheckReport()


def _findings(dataset: sets.DataSet, report: RowCheckReport, *, is_whole: bool) -> JsonObject:
    """Return a report as files, or with a few examples and the number of rows that each remedy changes."""
    if is_whole:
        return {"md": "\n".join(report.lines(MAX_LISTED)), "json": report.model_dump_json(indent=1)}
    checks = []
    for outcome in report.checks:
        facts = outcome.model_dump(exclude={"findings", "all_rows", "clusters", "masks", "scores"})
        examples = sorted(outcome.findings, key=lambda finding: finding.similarity or 0)[:_MOST_EXAMPLES]
        counts = {name: len(rows) for name, rows in _rows_to_change(dataset, report, outcome).items()}
        checks.append({**facts, "examples": [example.model_dump() for example in examples], "counts": counts})
    return {**report.model_dump(exclude={"checks"}), "checks": checks}


def _rows_to_change(dataset: sets.DataSet, report: RowCheckReport, check: CheckOutcome) -> dict[str, list[int]]:
    """Return the rows that each remedy changes: none that is excluded now, or was edited since the check."""
    versions = {version.name: version.last for version in dataset.versions}
    entries, last = sets.in_force(dataset.entries), versions.get(report.source.rpartition("@")[2], 0)
    editor = Editor([entry.operation for entry in entries], dataset.facts.rows)
    late = [entry.operation for entry in entries if entry.id > last]
    editor.excluded[[operation.row - 1 for operation in late if isinstance(operation, Edit)]] = True
    masked = {row - 1 for operation in late if isinstance(operation, Mask) for row in operation.values}
    rows, *clusters = ([row for row in part if not editor.excluded[row]] for part in (check.all_rows, *check.clusters))
    return {
        "exclude": rows,
        "best": [row for cluster in clusters for row in cluster[1:]],
        "hold_out": [row for cluster in clusters for row in cluster if not editor.held_out[row]],
        "mask": [row for row in rows if row in check.masks and row not in masked],
    }


def _remedy(dataset: sets.DataSet, report: RowCheckReport, question: SetQuestion) -> JsonObject:
    """Return the operation of a remedy."""
    outcome = report.outcome(question.check)
    if not (rows := sorted(_rows_to_change(dataset, report, outcome)[question.remedy])):
        raise DatasetError(f"{outcome.name} has no rows left to change.", "Check the rows of the set again.")
    if question.remedy == "mask":
        return {"kind": "mask", "values": {row + 1: outcome.masks[row] for row in rows}, "text": outcome.name}
    kind = "split" if question.remedy == "hold_out" else "drop"
    return {"kind": kind, "rows": text_of_rows(rows), "text": outcome.name}


def _in_json(text: str) -> bytes:
    """Return a text as it is within JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1].encode(errors="backslashreplace")


def _summary(rows: _Rows, row: int, state: int) -> JsonObject:
    """Return how a row begins: its columns, and its turns by role."""
    parts: list[tuple[str, Any]] = [("unreadable", rows.problems[row])] if row in rows.problems else []
    for name, value in rows.value(row).items():
        is_turns = isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value)
        for turn in value if is_turns else ({"role": name, "content": value},):
            content = turn.get("content", turn.get("value", turn))
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            parts.append((str(turn.get("role", turn.get("from", name)))[:40], one_line(text, _CELL)))
    parts = [part for part in parts if part[1] not in ("", "null", "[]")][:_PARTS]
    return {"row": row + 1, "state": state, "characters": int(rows.characters[row]), "parts": parts}


def _hits(rows: _Rows, operations: list[Operation]) -> Generator[None, None, JsonObject]:
    """Return how many rows a replacement changes, and the first of them."""
    pace, count, hits = Pace(), 0, list[JsonObject]()
    for row, replacement in product(range(len(rows.texts)), (o for o in operations if isinstance(o, Replace))):
        before = rows.value(row) if replacement.is_regex or _in_json(replacement.pattern) in rows.texts[row] else {}
        if before and (after := replacement.replace_in(before, row)) is not before:
            count += 1
            hits += [{"row": row + 1, **_difference(before, after)}] if len(hits) < _MOST_HITS else []
        if pace.turn_is_over():
            yield
    return {"count": count, "hits": hits}


def _changes(before: _Marked, after: _Marked, question: SetQuestion) -> JsonObject:
    """Return how many rows differ between two versions, and some of them; `(held out)` is a column of each."""
    (_, was), (_, now) = before, after
    differs = np.fromiter(map(ne, before[0].texts, after[0].texts), np.bool_) | ((was ^ now) & 2 > 0)
    kinds = np.select([was & now & 1 > 0, was & 1 > 0, now & 1 > 0, differs], ["", "added", "gone", "changed"], "")
    rows, hits = np.flatnonzero(kinds), list[JsonObject]()
    for row in rows[question.first : question.first + min(question.count, _MOST_HITS)].tolist():
        texts = (table.value(row) | {"(held out)": bool(marks[row] & 2)} for table, marks in (before, after))
        old, new = ("" if marks[row] & 1 else text for text, marks in zip(texts, (was, now), strict=True))
        hits.append({"row": row + 1, "kind": str(kinds[row]), **_difference(old, new)})
    return {"count": len(rows), "kinds": Counter(kinds[rows].tolist()), "hits": hits}


def _difference(before: Any, after: Any, column: str = "") -> JsonObject:
    """Return the first text that differs, from a little before the difference, and the column that has it."""
    parts = [dict(enumerate(value)) if isinstance(value, list) else value for value in (before, after)]
    for name in {**parts[0], **parts[1]} if all(isinstance(part, Mapping) for part in parts) else ():
        pair = [part.get(name, "") for part in parts]
        if pair[:1] != pair[1:]:
            return _difference(pair[0], pair[1], column or str(name))
    texts = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for v in (before, after)]
    start = max(0, shared_length(*texts) - 40)
    return {"column": column, "before": one_line(texts[0][start:], _CELL), "after": one_line(texts[1][start:], _CELL)}
