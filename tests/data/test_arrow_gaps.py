"""What Arrow fills in where objects of a column differ: it is no part of a call, of a tool, or of a turn."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.conversation import ToolCall
from loratory.engine.data.files.columnar import without_gaps
from loratory.engine.data.hub import HubRows
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from tests.data.checks import check_file


def tool(name, **properties):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


def call(name, **arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def talk(question, calls, result, tools):
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": json.dumps(result), "name": calls[0]["function"]["name"]},
            {"role": "assistant", "content": "Done."},
        ],
        "tools": tools,
    }


ROWS = [
    talk(
        "Weather in Paris?",
        [call("get_weather", city="Paris", place={"area": "centre"})],
        {"degrees": 20},
        [
            tool(
                "get_weather",
                city={"type": "string"},
                place={"type": "object", "properties": {"area": {"type": "string"}}},
            )
        ],
    ),
    talk(
        "Price of ACME?",
        [call("stock", ticker="ACME", days=3), call("stock", ticker="ACE", place={"street": "Wall"})],
        {"price": 7},
        [tool("stock", ticker={"type": "string", "enum": ["ACME"]}), tool("stop", place={"type": "object"})],
    ),
    talk("Stop.", [call("stop")], {}, [tool("stop")]),
]


def read_rows(path):
    reader = DatasetReader(DatasetConfig(source=str(path)), SourceOptions())
    return [row.example or row.problem for row in reader.rows()]


def write_both(folder, rows):
    lines, table = folder / "rows.jsonl", folder / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), table)
    return lines, table


def test_the_same_rows_are_the_same_conversations_as_lines_and_as_parquet(tmp_path):
    lines, table = write_both(tmp_path, ROWS)

    assert read_rows(table) == read_rows(lines)
    prints = [check_file(path).fingerprint for path in (lines, table)]
    assert prints[0] == prints[1]
    assert read_rows(table)[0].messages[1].tool_calls == (
        ToolCall("get_weather", {"city": "Paris", "place": {"area": "centre"}}),
    )
    assert read_rows(table)[2].messages[1].tool_calls == (ToolCall("stop", {}),)


def test_turns_of_several_makes_in_one_column_are_read(tmp_path):
    """Of every turn that has role and content, Arrow makes one with an empty from and value."""
    rows = [
        {"conversations": [{"from": "human", "value": "Ask"}, {"from": "gpt", "value": "Answer"}]},
        {"conversations": [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Answer"}]},
        {
            "conversations": [
                {"role": "user", "content": "Ask"},
                {"role": "assistant", "tool_calls": [{"name": "f", "parameters": {"x": 1}}]},
            ]
        },
    ]
    lines, table = write_both(tmp_path, rows)

    assert read_rows(table) == read_rows(lines)
    assert all(not isinstance(example, str) for example in read_rows(table))


def test_a_null_that_the_author_of_a_jsonl_file_wrote_stays(tmp_path):
    row = talk("Stop.", [call("stop", when=None)], {}, [tool("stop", when={"type": "string", "default": None})])
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")

    (conversation,) = read_rows(path)

    assert conversation.messages[1].tool_calls == (ToolCall("stop", {"when": None}),)
    assert conversation.tools[0]["function"]["parameters"]["properties"]["when"]["default"] is None


def test_columns_themselves_keep_their_nulls(tmp_path):
    _, table = write_both(tmp_path, [{"instruction": "Ask", "output": None, "x": {"a": 1}}, {"output": "b", "x": None}])

    rows = [record.value for record in DatasetReader(
        DatasetConfig(source=str(table), format="alpaca"), SourceOptions()
    ).records()]  # fmt: skip

    assert rows == [
        {"instruction": "Ask", "output": None, "x": {"a": 1}},
        {"instruction": None, "output": "b", "x": None},
    ]


def test_maps_and_lists_keep_their_nulls():
    assert without_gaps([("a", None), ("b", {"x": None, "y": 1})]) == [("a", None), ("b", {"y": 1})]
    assert without_gaps([None, {"x": None}, []]) == [None, {}, []]
    assert without_gaps(None) is None


class CacheArguments(datasets.GeneratorBasedBuilder):
    """Stands for a repository whose rows are these files."""

    __module__ = "datasets.packaged_modules.json.json"

    def __init__(self, kind, path, cache):
        self.arguments = {"path": kind, "data_files": str(path), "split": "train", "cache_dir": str(cache)}
        self.config = datasets.BuilderConfig()

    def download_and_prepare(self):
        pass

    def as_dataset(self, split):
        return datasets.load_dataset(**self.arguments)

    def as_streaming_dataset(self, split):
        return datasets.load_dataset(**self.arguments, streaming=True)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_rows_from_the_hub_are_those_of_a_file_here(tmp_path, monkeypatch, kind, streaming):
    lines, table = write_both(tmp_path, ROWS)
    builder = CacheArguments(kind, lines if kind == "json" else table, tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)

    reader = DatasetReader(DatasetConfig(source="someone/data"), SourceOptions(streaming=streaming))

    assert [row.example for row in reader.rows()] == read_rows(lines)


@pytest.mark.parametrize("streaming", [True, False])
def test_what_a_file_on_the_hub_holds_as_json_keeps_its_own_nulls(tmp_path, monkeypatch, streaming):
    path = tmp_path / "rows.jsonl"
    rows = [{"id": 1, "given": {"x": {"a": None}, "y": None}}, {"id": 2, "given": {"x": {"b": 1}, "y": 2}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    builder = CacheArguments("json", path, tmp_path / "cache")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)

    result = HubRows(DatasetConfig(source="someone/data"), streaming=streaming).records()

    assert [record.value["given"]["x"] for record in result] == [{"a": None}, {"b": 1}]
