"""Rows of a stand-alone script: they are the run's, from whatever file; or there is no script, or it stops."""

import argparse
import codecs
import csv
import gzip
import io
import json
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from engine.config.load import config_from_mapping
from engine.data.records import SourceForm
from engine.errors import DatasetError
from engine.export.script.data_facts import look_at_data
from engine.runs.history.events import DataReportData
from engine.runs.history.log import EventWriter
from engine.runs.provenance import Provenance
from engine.runs.run import RunFolder
from engine.runs.store import RunStore
from tests.data.test_hub import FakeHub
from tests.export.test_script import (
    CHAT,
    make_config,
    names_of,
    script_of,
    sequences_of,
    sequences_of_run,
    write_lines,
)

PAIRS = [{"prompt": f"Say {n}", "completion": f"It is {n}"} for n in range(12)]
LINES = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
TABLE = "prompt,completion\n" + "".join(f"Say {n},It is {n}\n" for n in range(12))
PARAGRAPHS = "\n\n".join(f"Paragraph {n}\nof a text." for n in range(12))


def table_of_turns() -> str:
    file = io.StringIO()
    csv.writer(file).writerows([["id", "messages"], *([n, json.dumps(CHAT[n]["messages"])] for n in range(12))])
    return file.getvalue()


FILES: dict[str, Any] = {
    "bar.csv": TABLE.replace(",", "|"),
    "tab.tsv": TABLE.replace(",", "\t") + "\t\n",
    "spaced header.csv": TABLE.replace("prompt,completion", "prompt, completion "),
    "lines of spaces.csv": "\n" + TABLE.replace("\n", "\n  \n"),
    "cells over lines.csv": TABLE.replace("Say ", '"Say ""this""\r\n\r\n').replace(",It", '",It').replace("\n", "\r\n"),
    "missing and surplus cells.csv": f"{TABLE}alone\none,two,three\n",
    "a long cell.csv": f"{TABLE}long,{'words ' * 30_000}\n",
    "turns in cells.csv": table_of_turns(),
    "line separators.jsonl": LINES.replace("Say", "Say\u2028"),
    "old marks.jsonl": codecs.BOM_UTF8 + LINES.replace("\n", "\r\n\r\n").encode(),
    "not UTF-8.jsonl": LINES.encode() + b'{"prompt": "\xff", "completion": ""}\n',
    "keys given twice.jsonl": LINES + '{"prompt": "", "prompt": "", "completion": ""}\n',
    "UTF-16.jsonl": LINES.encode("utf-16"),
    "packed.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "turns as text.jsonl": "".join(json.dumps({"messages": json.dumps(row["messages"])}) + "\n" for row in CHAT),
    "bare lists.jsonl": "".join(json.dumps(row["messages"]) + "\n" for row in CHAT),
    "bare lists.json": json.dumps([CHAT[0], *(row["messages"] for row in CHAT)]),
    "one row.jsonl": LINES.splitlines()[0],
    "all rows alike.jsonl": LINES.splitlines(keepends=True)[0] * 12,
    "paragraphs.txt": "\n \n" + PARAGRAPHS.replace("\n", "\r\n"),
}


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_the_run_reads_it(name, tiny_model_folder, home, tmp_path):
    content = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    turns = {"format": "messages"} if name.startswith("turns") else {}
    config = make_config(tiny_model_folder, str(tmp_path / name), {"max_length": 400}, **turns)

    assert sequences_of(script_of(config, home)) == sequences_of_run(config, home)


@pytest.mark.parametrize(
    ("name", "content", "kind", "encoding", "delimiter", "is_packed"),
    [
        ("bar.csv", TABLE.replace(",", "|").encode(), "delimited", "utf-8-sig", "|", False),
        ("packed.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), "json_lines", "utf-8-sig", ",", True),
        ("UTF-16.jsonl", LINES.encode("utf-16"), "json_lines", "utf-16", ",", False),
        ("text.txt", PARAGRAPHS.encode(), "paragraphs", "utf-8-sig", ",", False),
    ],
)
def test_how_a_file_is_read_does_not_depend_on_the_words_for_it(
    home, tmp_path, monkeypatch, name, content, kind, encoding, delimiter, is_packed
):
    monkeypatch.setattr(SourceForm, "words", property(lambda _: "gzip, UTF-16, Parquet, semicolon between cells"))
    file = tmp_path / name
    file.write_bytes(content)

    facts = look_at_data(config_from_mapping({"model": {"id": "a/b"}, "dataset": {"source": str(file)}}), home)

    assert (facts.kind, facts.encoding, facts.delimiter, facts.gzip) == (kind, encoding, delimiter, is_packed)


def test_parquet_and_folders_are_read_as_the_run_reads_them(tiny_model_folder, home, tmp_path):
    answers = pyarrow.array([f"It is {n % 5}" for n in range(12)]).dictionary_encode()
    table = pyarrow.table({"prompt": [pair["prompt"] for pair in PAIRS], "completion": answers})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=5)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train-1.jsonl", "train-2.jsonl", "test.jsonl", ".train.jsonl"):
        (folder / name).write_text(LINES.replace("Say", name) + "{cut off\n")

    for source in (tmp_path / "rows.parquet", folder):
        config = make_config(tiny_model_folder, str(source), {"max_length": 400})
        assert sequences_of(script_of(config, home)) == sequences_of_run(config, home)


def test_a_dataset_on_the_hub_is_asked_for_as_the_run_asks(tiny_model_folder, home, monkeypatch):
    # Arrow fills in what only some turns have.
    rows = [{"messages": [asked, {**text, **({"reasoning": "Hm."} if n % 2 else {})}]} for n, (asked, text) in TALKS]
    hub = FakeHub(rows)
    asks = []

    def load_dataset(*names, **more):
        asks.append((names, more))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset_builder", hub.load_dataset_builder)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = make_config(tiny_model_folder, "someone/talks", {"max_length": 400}, subset="long", revision="v1")

    assert sequences_of(script_of(config, home)) == sequences_of_run(config, home)
    assert asks == [(("someone/talks",), {"name": "long", "split": "train", "revision": "v1"})]


TALKS = [(n, row["messages"]) for n, row in enumerate(CHAT)]
BOTH_SYSTEMS = [
    {"system": "Be brief.", "messages": [{"role": "system", "content": "Be kind."}] * (n % 2) + row["messages"]}
    for n, row in enumerate(CHAT)
]
IN_PARTS = [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "One"}, f"{n}"]}, row["messages"][1]]}
    for n, row in enumerate(CHAT)
]
OWN_NAMES = [
    {"talk": [{"who": "User ", "said": row["messages"][0]["content"]}, {"who": "gpt", "said": "A number."}]}
    for row in CHAT
]
SHAPES = {
    "two system prompts become one": (BOTH_SYSTEMS, {}),
    "words in parts": (IN_PARTS, {}),
    "fields and columns of other names": (
        OWN_NAMES,
        {"format": "messages", "column_map": {"messages": "talk", "role": "who", "content": "said"}},
    ),
    "a history": (
        [{"instruction": f"{n}?", "output": f"{n}.", "history": [["Hello", "Hi"]] * (n % 3)} for n in range(12)],
        {},
    ),
    "a history as text": (
        [{"instruction": f"{n}?", "output": f"{n}.", "history": '[["Hello", "Hi"]]' * (n % 2)} for n in range(12)],
        {},
    ),
    "questions as text": (
        [{"prompt": json.dumps(row["messages"][:1]), "completion": row["messages"][1:]} for row in CHAT],
        {},
    ),
    "words that look like turns": (
        [{"prompt": f'[{{"role": {n}}}]', "completion": f'[{{"role": "{n}"}}]'} for n in range(12)],
        {},
    ),
    "a question in words with an answer in turns": (
        [{"prompt": f"{n}?", "completion": [{"role": "assistant", "content": f"{n}."}]} for n in range(12)],
        {"train_on": "completion"},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_has_the_text_of_the_run(name, tiny_model_folder, home, tmp_path):
    rows, dataset = SHAPES[name]
    source = str(write_lines(tmp_path / "rows.jsonl", rows))
    config = make_config(tiny_model_folder, source, {"max_length": 400}, **dataset)

    assert sequences_of(script_of(config, home)) == sequences_of_run(config, home)


REFUSED = {
    "a quote that is never closed.csv": TABLE.replace("Say 6", '"Say 6'),
    "an old line end in a cell.csv": f"{TABLE}one\rmore,two\n",
    "old line ends.jsonl": LINES.replace("\n", "\r"),
    "lines of odd spaces.jsonl": LINES.replace("\n", "\n\u00a0\n"),
    "an open array.json": f"[{','.join(LINES.splitlines())}",
    "objects over lines.json": "\n".join(json.dumps(row, indent=1) for row in CHAT),
    "columns of two names.jsonl": LINES.replace('"prompt": "Say 7', '"Prompt": "Say 7'),
    "words in fields of two names.jsonl": "".join(
        json.dumps({"messages": [row["messages"][0] | ({"value": "Not this."} if n == 7 else {}), row["messages"][1]]})
        + "\n"
        for n, row in enumerate(CHAT)
    ),
    "questions of two kinds.jsonl": LINES.replace('"Say 7"', '[{"role": "user", "content": "Say 7"}]'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_a_script_would_read_otherwise_are_refused(name, tiny_model_folder, home, tmp_path):
    (tmp_path / name).write_bytes(REFUSED[name].encode())

    with pytest.raises(DatasetError, match="which a script cannot read"):
        script_of(make_config(tiny_model_folder, str(tmp_path / name)), home)


def test_files_that_differ_in_kind_are_refused(tiny_model_folder, home, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.csv").write_text(TABLE)
    (folder / "b.csv").write_text(TABLE.replace(",", ";"))

    with pytest.raises(DatasetError, match="row 13 would differ"):
        script_of(make_config(tiny_model_folder, str(folder)), home)


def test_calls_of_tools_are_refused(tiny_model_folder, home, tmp_path):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "count", "arguments": {}}}]}
    rows = [*CHAT, {"messages": [CHAT[0]["messages"][0], call, {"role": "tool", "content": "1"}, *CHAT[0]["messages"]]}]
    source = str(write_lines(tmp_path / "rows.jsonl", rows))

    with pytest.raises(DatasetError, match=r"Row 13 of rows\.jsonl has tools"):
        script_of(make_config(tiny_model_folder, source), home)


def test_turns_that_are_only_read_are_refused(tiny_model_folder, home, tmp_path):
    asked, answered = CHAT[0]["messages"][:2]
    source = write_lines(
        tmp_path / "rows.jsonl", [*CHAT, {"messages": [asked, {**answered, "weight": 0}, asked, answered]}]
    )

    with pytest.raises(DatasetError, match=r"Row 13 of rows\.jsonl has turns of weight 0"):
        script_of(make_config(tiny_model_folder, str(source)), home)


def test_a_script_stops_where_its_rows_have_changed(tiny_model_folder, home, tmp_path, capsys):
    source = write_lines(tmp_path / "rows.jsonl", [*CHAT, "{broken\n"])
    other = write_lines(tmp_path / "other.jsonl", CHAT[:6])
    names = names_of(make_config(tiny_model_folder, str(source)), home)

    assert len(names["load_rows"]([str(source)])) == 12
    write_lines(source, [*CHAT[:11], CHAT[0], "{broken\n"])
    with pytest.raises(SystemExit, match=r"12 rows of .*rows\.jsonl.* are not those that this script was written for"):
        names["load_rows"](names["DATA"])
    source.write_text('{"other": "columns"}\n')
    with pytest.raises(SystemExit, match=r"cannot be read \(KeyError: 'messages'\)"):
        names["load_rows"](names["DATA"])
    assert not capsys.readouterr().out
    assert len(names["load_rows"]([str(other)])) == 6
    assert "6 rows" in capsys.readouterr().out


def filed_run(config, home, fingerprint: str, report: DataReportData) -> RunFolder:
    """A run that has read its rows."""
    run = RunStore(home, "ann").create(config, Provenance(dataset_fingerprint=fingerprint))
    EventWriter(run.folder.events, 1).append(report)
    return run.folder


def report_of(train: list, held_out: list, dropped: int = 0) -> DataReportData:
    learned = sum(label != -100 for _, labels in train for label in labels)
    read = sum(len(labels) for _, labels in train) - learned
    return DataReportData(
        train_rows=len(train), eval_rows=len(held_out), dropped_rows=dropped, trained_tokens=learned, masked_tokens=read
    )


def test_the_script_of_a_run_stops_where_its_rows_become_other_tokens(tiny_model_folder, home, tmp_path):
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "rows.jsonl", CHAT)))
    fingerprint = names_of(config, home)["ROWS"]
    report = report_of(*sequences_of_run(config, home))

    def prepare(**changed: int):
        run = filed_run(config, home, fingerprint, report.model_copy(update=changed))
        names = names_of(config, home, run)
        options = argparse.Namespace(model=names["MODEL"], data=names["DATA"])
        return names["prepare"](names["load_tokenizer"](options.model), options)

    assert len(prepare()[0]) == 9
    for changed in {"train_rows": 8}, {"eval_rows": 2}, {"trained_tokens": 1}:
        with pytest.raises(SystemExit, match="in the run they were"):
            prepare(**changed)


def test_there_is_no_script_of_a_run_whose_rows_have_changed(tiny_model_folder, home, tmp_path):
    config = make_config(tiny_model_folder, str(write_lines(tmp_path / "rows.jsonl", CHAT)))
    run = filed_run(config, home, "f" * 64, report_of(*sequences_of_run(config, home)))

    with pytest.raises(DatasetError, match="no longer those that this run was trained on"):
        script_of(config, home, run)
