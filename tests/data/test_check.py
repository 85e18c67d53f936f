"""The report over all rows."""

import json
from itertools import pairwise

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes import check as check_module
from loratory.engine.data.passes.check import (
    MAX_LENGTHS,
    MAX_LISTED,
    check_steps,
    finish,
    length_statistics,
    pass_steps,
)
from loratory.engine.data.passes.reader import DatasetReader, Renderer
from loratory.engine.data.render.tokenize import render_many
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError
from tests.data.checks import check_dataset, check_file, write_rows, yield_at_every_row
from tests.data.families import family, renderer_of, tokenizer_of


def row(number, answer="An answer."):
    return {"instruction": f"Question {number}?", "output": answer}


@pytest.fixture
def file(tmp_path):
    rows = [row(number) for number in range(50)] + [row(3), row(4), row(4), row(50, ""), row(51, None)]
    return write_rows(tmp_path / "rows.jsonl", rows)


def test_counts_add_up_with_and_without_tokens(file):
    config = DatasetConfig(source=str(file), eval_fraction=0.2)
    tokenizer = tokenizer_of(family("qwen2.5"))

    plain = check_dataset(config)
    with_tokens = check_dataset(config, renderer=Renderer(tokenizer, 1024, "tiny"))

    for report in (plain, with_tokens):
        assert (report.rows, report.kept, report.dropped) == (55, 53, 2)
        assert [(p.row, p.line, p.kind) for p in report.problems] == [(53, 54, "empty"), (54, 55, "not_text")]
        assert report.problem_counts == {"empty": 1, "not_text": 1}
        assert report.duplicates == 3
        assert report.duplicate_rows == (50, 51, 52)
        assert report.train_rows + report.held_out_rows == 53
        assert report.held_out_rows == 11
    assert plain.token_lengths is None
    assert plain.trained_tokens is None
    assert with_tokens.trained_tokens + with_tokens.masked_tokens == with_tokens.total_tokens
    lengths = with_tokens.token_lengths
    assert lengths.min <= lengths.p50 <= lengths.p95 <= lengths.max
    assert sum(lengths.histogram.counts) == with_tokens.sequences == 53
    assert len(lengths.histogram.edges) == len(lengths.histogram.counts) + 1


def test_the_cut_counts_what_it_loses(tmp_path):
    rows = [row(0, "one " * 5), row(1, "one " * 200), {"instruction": "one " * 200, "output": "two"}]
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)), eval_fraction=0)
    tokenizer = tokenizer_of(family("qwen2.5"))

    whole = check_dataset(config, renderer=Renderer(tokenizer, None))
    cut = check_dataset(config, renderer=Renderer(tokenizer, 100))

    assert whole.dropped == 0
    assert (cut.kept, cut.problem_counts) == (2, {"cut_away": 1})
    assert cut.token_lengths.over_max_length == 1
    assert cut.lost_trained_tokens > 0
    assert whole.longest_rows[0] == 1
    assert whole.shortest_rows[0] == 0
    last_answer = len(tokenizer("two<|im_end|>", add_special_tokens=False)["input_ids"])
    assert cut.trained_tokens + cut.lost_trained_tokens == whole.trained_tokens - last_answer


def test_percentiles_are_lengths_that_occur():
    lengths = length_statistics(range(100, 0, -1), 60)

    assert [lengths.min, lengths.p50, lengths.p95, lengths.max] == [1, 50, 95, 100]
    assert (lengths.over_max_length, sum(lengths.histogram.counts)) == (40, 100)


def test_a_report_is_remembered_until_file_or_settings_change(file, home, monkeypatch):
    config = DatasetConfig(source=str(file))
    options = SourceOptions(home=home)
    first = check_dataset(config, options)
    passes = []
    original = check_module.Counts
    monkeypatch.setattr(check_module, "Counts", lambda parts: passes.append(parts) or original(parts))

    assert check_dataset(config, options) == first
    assert not passes

    assert check_dataset(config, options, seed=7).rows == first.rows
    assert check_dataset(config.model_copy(update={"train_on": "all"}), options).rows == first.rows
    write_rows(file, [row(1), row(2)])
    assert check_dataset(config, options).rows == 2
    assert len(passes) == 3


def test_the_fingerprint_is_that_of_the_rows_and_not_of_the_file(tmp_path):
    rows = [row(1), row(2)]
    lines = write_rows(tmp_path / "rows.jsonl", [*rows, row(3, "")])
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(rows, indent=2))

    prints = [check_file(path).fingerprint for path in (lines, array)]
    other = write_rows(tmp_path / "other.jsonl", rows[::-1])

    assert prints[0] == prints[1]
    assert check_file(other).fingerprint != prints[0]


def test_a_damaged_cache_costs_time_and_nothing_else(file, home):
    config = DatasetConfig(source=str(file))
    options = SourceOptions(home=home)
    first = check_dataset(config, options)
    for cached in options.cache_folder.iterdir():
        cached.write_text('{"rows": "many')

    assert check_dataset(config, options).model_copy(update={"seconds": 0}) == first.model_copy(update={"seconds": 0})


def test_progress_grows(tmp_path, monkeypatch):
    yield_at_every_row(monkeypatch)
    path = write_rows(tmp_path / "rows.jsonl", [row(number) for number in range(200)])

    progress = list(check_steps(DatasetConfig(source=str(path)), SourceOptions(), seed=1))

    assert len(progress) == 200
    assert all(
        before.rows < after.rows and before.bytes_read <= after.bytes_read for before, after in pairwise(progress)
    )
    assert all(0 <= step.fraction <= 1 for step in progress)


def test_long_rows_are_tokenized_one_by_one_with_a_turn_for_others_between(tmp_path, monkeypatch):
    yield_at_every_row(monkeypatch)
    long = " ".join(["adapter"] * 20_000)
    path = write_rows(tmp_path / "rows.jsonl", [row(number, f"{number} {long}") for number in range(8)])
    together = []

    def render(examples, tokenizer, options):
        together.append(len(examples))
        return render_many(examples, tokenizer, options)

    monkeypatch.setattr("loratory.engine.data.passes.reader.render_many", render)
    renderer = renderer_of(1024)

    steps = check_steps(DatasetConfig(source=str(path)), SourceOptions(), seed=1, renderer=renderer)

    assert sum(1 for _ in steps) == 8
    assert max(together) == 1


def test_lists_are_bounded_and_counts_are_not(tmp_path):
    rows = [row(0)] + [row(number, "") for number in range(MAX_LISTED + 500)]
    report = check_file(write_rows(tmp_path / "rows.jsonl", rows))

    assert report.dropped == sum(report.problem_counts.values()) == MAX_LISTED + 500
    assert len(report.problems) == MAX_LISTED


def test_a_mixture_is_numbered_through_and_each_source_keeps_its_format(tmp_path):
    first = write_rows(tmp_path / "a.jsonl", [row(0), row(1, "")])
    second = tmp_path / "b.csv"
    second.write_text("question,answer\nWhat?,That.\nWhat?,\n")
    config = DatasetConfig(source=str(first), mix={str(second): 0.5, "sample:lab-chats": 1.0})

    report = check_dataset(config)

    assert [part.format for part in report.parts] == ["alpaca", "prompt_completion", "sharegpt"]
    assert [part.weight for part in report.parts] == [1.0, 0.5, 1.0]
    assert report.rows == 2 + 2 + report.parts[2].rows
    assert [(p.row, p.line) for p in report.problems] == [(1, 2), (3, 3)]


@pytest.mark.parametrize(
    "chosen",
    [
        {"format": "alpaca", "column_map": {"instruction": "q", "output": "a"}},
        {"column_map": {"instruction": "q", "output": "a"}},
        {"format": "alpaca", "column_map": {"instruction": "q", "output": "a", "input": ""}},
    ],
    ids=["format and mapping", "mapping", "a role left out"],
)
def test_what_was_chosen_for_the_first_source_binds_others_where_it_fits_them(tmp_path, chosen):
    first = write_rows(tmp_path / "a.jsonl", [{"q": f"Ask {number}", "a": "One."} for number in range(3)])
    same = write_rows(tmp_path / "b.jsonl", [{"q": "Ask", "a": "Two."}])
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    other = write_rows(tmp_path / "c.jsonl", [{"messages": talk}])
    config = DatasetConfig(source=str(first), mix={str(same): 1.0, str(other): 1.0}, **chosen)

    report = check_dataset(config)

    assert [part.format for part in report.parts] == ["alpaca", "alpaca", "messages"]
    assert (report.kept, report.dropped) == (5, 0)


def test_a_source_of_a_mixture_that_has_no_format_is_named(tmp_path):
    first = write_rows(tmp_path / "a.jsonl", [row(0), row(1)])
    other = write_rows(tmp_path / "strange.jsonl", [{"x": "1", "y": "2"}])

    with pytest.raises(DatasetError, match=r"strange.jsonl, a source of the mixture.*'x', 'y'"):
        check_dataset(DatasetConfig(source=str(first), format="alpaca", mix={str(other): 1.0}))


def test_the_split_of_the_first_source_is_no_other_sources(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for split in ("train", "special"):
            write_rows(tmp_path / folder / f"{split}.jsonl", [row(number, f"{folder} {split}") for number in range(2)])
    config = DatasetConfig(source=str(tmp_path / "one"), split="special", mix={str(tmp_path / "two"): 1.0})

    reader = DatasetReader(config, SourceOptions())

    assert [record.value["output"] for record in reader.records()] == ["one special"] * 2 + ["two train"] * 2


def test_duplicates_are_found_across_formats_and_never_split(tmp_path):
    first = write_rows(tmp_path / "a.jsonl", [row(number) for number in range(20)])
    talk = [{"from": "human", "value": "Question 3?"}, {"from": "gpt", "value": "An answer."}]
    second = write_rows(tmp_path / "b.jsonl", [{"conversations": talk}])

    report = check_dataset(DatasetConfig(source=str(first), mix={str(second): 1.0}))

    assert report.duplicate_rows == (20,)


def test_what_the_template_cannot_say_is_noted_with_the_number_of_rows(tmp_path):
    talk = [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]
    path = write_rows(tmp_path / "rows.jsonl", [{"conversations": talk, "system": "Be kind."}] * 3)
    renderer = renderer_of(512, "gemma", notes=("A note about the tokenizer.",))

    report = check_file(path, renderer)

    assert report.notes[0] == "A note about the tokenizer."
    assert "system turn" in report.notes[1]
    assert "Rows: 3." in report.notes[1]


def test_plain_text_is_trained_whole_whatever_train_on_says(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("One.\n\nTwo.\n")
    renderer = renderer_of(512)

    report = check_file(path, renderer)

    assert report.masked_tokens == 2  # the first token of each row, which nothing comes before
    assert any("all of it is trained" in note for note in report.notes)


@pytest.mark.parametrize(("name", "rows"), [("alpaca_en_999.json", 999), ("sharegpt_glaive_toolcall_300.json", 300)])
def test_the_shared_files_are_kept_whole(shared_folder, name, rows):
    report = check_file(shared_folder / "data" / name, renderer_of())

    assert (report.rows, report.kept, report.dropped) == (rows, rows, 0)
    assert report.trained_tokens + report.masked_tokens == report.total_tokens


def test_lengths_are_those_of_the_rows_to_train_on_in_their_order_before_the_cut(tmp_path):
    rows = [row(number, "one " * (2 * number + 1)) for number in range(40)]
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)), eval_fraction=0.25)
    renderer = renderer_of(100)
    observations = []

    steps = pass_steps(
        DatasetReader(config, SourceOptions(), renderer), 42, lambda row: observations.append(row.rendering.rows)
    )
    report, split, _ = finish(steps)
    uncut = check_dataset(config, renderer=Renderer(renderer.tokenizer, 1000, "tiny"))

    train_sequences = [sequence for number in split.train.tolist() for sequence in observations[number]]
    assert report.row_lengths.tokens == tuple(sequence.uncut_tokens for sequence in train_sequences)
    assert max(report.row_lengths.tokens) > 100
    assert report.row_lengths == uncut.row_lengths
    assert report.row_lengths.count == report.train_rows == 30


@pytest.mark.parametrize("max_length", [120, 1024], ids=["cut", "whole"])
def test_the_longest_prompt_is_what_comes_before_the_only_answer(tmp_path, max_length):
    questions, turns = [5, 9, 3], lambda text: {"role": "user", "content": text}
    rows = [{"messages": [turns("why " * count), {"role": "assistant", "content": "so " * 50}]} for count in questions]
    renderer = renderer_of(max_length)
    prompt = renderer.tokenizer.apply_chat_template(rows[1]["messages"][:1], add_generation_prompt=True)

    report = check_file(write_rows(tmp_path / "rows.jsonl", rows), renderer)
    rows[0]["messages"] *= 2
    with_two = check_file(write_rows(tmp_path / "two.jsonl", rows), renderer)

    assert report.row_lengths.longest_prompt == len(prompt["input_ids"])
    assert with_two.row_lengths.longest_prompt == with_two.row_lengths.longest


def test_of_many_rows_an_even_draw_of_lengths_holds_the_longest(tmp_path):
    rows = [row(number, "one " * (1 + number % 7)) for number in range(MAX_LENGTHS + 500)]
    rows[777]["output"] = "one " * 300
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)), eval_fraction=0)

    report = check_dataset(config, renderer=renderer_of(1024))
    lengths = report.row_lengths

    assert (len(lengths.tokens), lengths.count) == (MAX_LENGTHS, len(rows))
    assert lengths.longest == report.token_lengths.max
    assert sorted(lengths.tokens)[MAX_LENGTHS // 2] == report.token_lengths.p50
