"""Roles that rows name in their own words: mapped, left out, and counted where they are unknown."""

import pytest
from pydantic import ValidationError

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import CheckProgress, PageRequest, SetQuestion
from loratory.engine.data.conversation import Conversation
from loratory.engine.data.passes.check import finish, pass_steps
from loratory.engine.data.passes.page import read_columns, read_page
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.exchange import add_set
from loratory.engine.data.workshop.table import SetTables
from loratory.engine.errors import DatasetError
from tests.data.checks import check_dataset, write_rows

FORMATS = {"messages": ("messages", "role", "content"), "sharegpt": ("conversations", "from", "value")}
TALK = (("customer", "My order is late."), ("note", "angry"), ("Agent", "I am sorry."))
ROLE_MAP = {" Customer ": "user", "agent": "assistant", "note": ""}
MAPPED = [("user", "My order is late."), ("assistant", "I am sorry.")]


def row_of(format_, *turns):
    column, role, content = FORMATS[format_]
    return {column: [{role: name, content: text} for name, text in turns]}


def messages_in(file, options=SourceOptions(), **settings):  # noqa: B008 - frozen
    (row,) = DatasetReader(DatasetConfig(source=str(file), **settings), options).rows()
    assert isinstance(row.example, Conversation), row.problem
    return [(message.role, message.content) for message in row.example.messages]


@pytest.mark.parametrize("format_", FORMATS)
def test_roles_are_mapped_in_any_case_and_turns_of_an_empty_one_are_left_out(tmp_path, format_):
    file = write_rows(tmp_path / "rows.jsonl", [row_of(format_, *TALK)])

    assert messages_in(file, role_map=ROLE_MAP) == MAPPED
    assert messages_in(file, role_map=ROLE_MAP, format=format_) == MAPPED


def test_a_known_role_can_be_read_as_another_one(tmp_path):
    file = write_rows(
        tmp_path / "rows.jsonl", [row_of("messages", ("bot", "Hi"), ("gpt", "Who is it?"), ("bot", "A."))]
    )

    assert messages_in(file, role_map={"gpt": "user", "bot": "assistant"}) == [
        ("assistant", "Hi"), ("user", "Who is it?"), ("assistant", "A."),
    ]  # fmt: skip


def test_roles_are_mapped_with_columns_in_pairs_and_in_a_mixture(tmp_path):
    talk = {"turns": [{"who": name, "says": text} for name, text in TALK]}
    file = write_rows(tmp_path / "rows.jsonl", [talk])
    columns = {"messages": "turns", "role": "who", "content": "says"}
    assert messages_in(file, role_map=ROLE_MAP, format="messages", column_map=columns) == MAPPED
    pair = {
        "prompt": "Why?",
        "chosen": [{"role": "customer", "content": "Why?"}, {"role": "agent", "content": "So."}],
        "rejected": [{"role": "customer", "content": "Why?"}, {"role": "agent", "content": "No."}],
    }
    pairs = write_rows(tmp_path / "pairs.jsonl", [pair])
    assert messages_in(pairs, role_map=ROLE_MAP) == [("user", "Why?"), ("assistant", "So.")]
    plain = write_rows(tmp_path / "plain.jsonl", [row_of("sharegpt", ("human", "A"), ("gpt", "B"))])
    mixed = write_rows(tmp_path / "mixed.jsonl", [row_of("messages", *TALK)])
    report = check_dataset(DatasetConfig(source=str(plain), mix={str(mixed): 1.0}, role_map=ROLE_MAP))
    assert (report.kept, report.dropped) == (2, 0)


def test_a_row_whose_turns_are_all_left_out_is_skipped(tmp_path):
    rows = [row_of("messages", *TALK), row_of("messages", ("note", "a"), ("note", "b"))]
    file = write_rows(tmp_path / "rows.jsonl", rows)

    report = check_dataset(DatasetConfig(source=str(file), role_map=ROLE_MAP))

    assert [(problem.row, problem.problem) for problem in report.problems] == [
        (1, "all turns of messages are left out")
    ]
    assert not report.unknown_roles


@pytest.mark.parametrize("format_", FORMATS)
def test_unknown_roles_are_counted_by_rows_with_a_turn_of_each(tmp_path, format_):
    rows = [
        row_of(format_, *TALK, ("customer", "Thanks.")), row_of(format_, ("user", "Hi"), ("assistant", "Hello.")),
        row_of(format_, ("customer", "Hi"), ("assistant", "Hello.")),
    ]  # fmt: skip
    file = write_rows(tmp_path / "rows.jsonl", rows)

    report = check_dataset(DatasetConfig(source=str(file)))

    assert report.problem_counts == {"unknown_role": 2}
    assert report.unknown_roles == {
        "customer": (2, "My order is late."), "note": (1, "angry"), "agent": (1, "I am sorry."),
    }  # fmt: skip
    left = check_dataset(DatasetConfig(source=str(file), role_map={"customer": "user", "note": ""}))
    assert left.unknown_roles == {"agent": (1, "I am sorry.")}


def test_where_no_row_can_be_used_the_last_progress_has_the_roles(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [row_of("sharegpt", *TALK)] * 3)
    steps = pass_steps(DatasetReader(DatasetConfig(source=str(file)), SourceOptions()), 42)
    progress: list[CheckProgress] = []

    with pytest.raises(DatasetError, match=r"unknown role 'customer'.*column or role mapping"):
        finish(steps, progress.append)

    assert progress[-1].rows == 3
    assert progress[-1].unknown_roles["customer"] == (3, "My order is late.")


def test_a_mapping_is_part_of_what_identifies_the_rows(home, tmp_path):
    file = write_rows(
        tmp_path / "rows.jsonl", [row_of("messages", *TALK), row_of("messages", ("user", "a"), ("gpt", "b"))]
    )
    options = SourceOptions(home=home)

    reports = [
        check_dataset(DatasetConfig(source=str(file), role_map=role_map), options)
        for role_map in ({}, ROLE_MAP, {**ROLE_MAP, "note": "system"})
    ]

    assert [report.kept for report in reports] == [1, 2, 2]
    assert len({report.fingerprint for report in reports}) == 3


def test_the_roles_of_a_set_are_used_and_a_run_adds_its_own(home, tmp_path):
    file = write_rows(tmp_path / "talks.jsonl", [row_of("messages", *TALK)])
    config = DatasetConfig(source=str(file), role_map={"customer": "user", "note": ""})
    add_set(home, "talks", config, author="ann", require_space=lambda _: None)
    options = SourceOptions(home=home)

    with pytest.raises(DatasetError, match="unknown role 'Agent'"):
        check_dataset(DatasetConfig(source="set:talks"), options)
    report = check_dataset(DatasetConfig(source="set:talks", role_map={"agent": "assistant"}), options)
    assert (report.kept, report.dropped) == (1, 0)

    question = SetQuestion.model_validate({"do": "make", "dataset": config.model_copy(update={"train_on": "all"})})
    answer = result_of(SetTables(home, options).answer(question))
    assert messages_in(f"set:{answer['name']}", options, role_map={"agent": "assistant"}) == MAPPED


def result_of(steps):
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize(
    "role_map", [{"customer": "boss"}, {" ": "user"}, {"x" * 61: "user"}, {f"r{n}": "user" for n in range(101)}]
)
def test_a_mapping_to_no_role_or_of_no_name_is_refused(role_map):
    with pytest.raises(ValidationError):
        DatasetConfig(source="x", role_map=role_map)


def test_columns_have_how_they_begin(tmp_path):
    rows = [{"q": "", "a": "An\nanswer", "n": 3}, {"q": "A question", "a": "Other", "t": [{"x": 1}]}]
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)))
    expected = {"a": "An answer", "n": "3", "q": "A question", "t": '[{"x": 1}]'}

    assert read_columns(config, SourceOptions()).samples == expected
    mapping = {"instruction": "q", "output": "a"}
    reader = DatasetReader(config.model_copy(update={"column_map": mapping}), SourceOptions())
    assert result_of(read_page(reader, PageRequest())).samples == expected
