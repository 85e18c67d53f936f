"""Rows that say which answer is better: recognized, read, checked and rendered."""

import json

import pytest

from loratory.engine.config.objectives import OBJECTIVES
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.conversation import LabeledCompletion, Message, PreferencePair
from loratory.engine.data.formats import Converter, detect_format
from loratory.engine.data.passes.prepare import prepare_dataset
from loratory.engine.data.passes.reader import Renderer
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError
from tests.data.checks import check_dataset, write_rows
from tests.data.families import family, renderer_of, tokenizer_of

ASKED = {"role": "user", "content": "Which bird?"}
GOOD, BAD = {"role": "assistant", "content": "A heron."}, {"role": "assistant", "content": "A fish."}
HH = "\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: Which bird?\n\nAssistant: "

PAIRS = {
    "text with a prompt": ({"prompt": "Which bird?", "chosen": "A heron.", "rejected": "A fish."}, "preference"),
    "turns with a prompt": ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, "preference"),
    "turns without one": ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "score": 1.0}, "preference"),
    "turns as JSON text": ({"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([ASKED, BAD])}, "preference"),
    "UltraFeedback": (
        {"prompt": "Which bird? ", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "score_chosen": 8.0},
        "preference",
    ),
    "text that begins alike": ({"chosen": "Which bird? A heron.", "rejected": "Which bird? A fish."}, None),
    "HH": ({"chosen": f"{HH}A heron.", "rejected": f"{HH}A fish."}, "hh"),
    "LLaMA-Factory, Alpaca": (
        {"instruction": "Which bird?", "input": "", "chosen": "A heron.", "rejected": "A fish."},
        "ranking",
    ),
    "LLaMA-Factory, ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Which bird?"}],
            "chosen": {"from": "gpt", "value": "A heron."},
            "rejected": {"from": "gpt", "value": "A fish."},
        },
        "ranking",
    ),
    "a question under another name": ({"question": "Which bird?", "chosen": "A heron.", "rejected": "A fish."}, None),
}


def convert_row(row, **settings):
    return Converter(detect_format(DatasetConfig(source="x", **settings), [row])).convert(row)


@pytest.mark.parametrize(("row", "format_"), PAIRS.values(), ids=PAIRS)
def test_pairs_are_recognized_in_all_their_styles(row, format_):
    detection = detect_format(DatasetConfig(source="x"), [row])
    pair = Converter(detection).convert(row)

    assert detection.format == (format_ or "preference")
    assert detection.sure is (format_ is not None)
    assert isinstance(pair, PreferencePair)
    assert pair.prompt[-1] == Message("user", pair.prompt[-1].content)
    assert pair.prompt[-1].content.strip().removesuffix(" A") == "Which bird?"  # cut where the two begin to differ
    assert len(pair.prompt) == (3 if detection.format == "hh" else 1)
    last_words = [pair.chosen[0].content.split()[-1], pair.rejected[0].content.split()[-1]]
    assert last_words == ["heron.", "fish."]


RATINGS = {
    "TRL": {"prompt": "Which bird?", "completion": "A fish.", "label": False},
    "a table": {"prompt": "Which bird?", "completion": "A fish.", "label": "False"},
    "turns": {"prompt": [ASKED], "completion": [BAD], "label": False},
    "LLaMA-Factory": {"messages": [ASKED, BAD], "kto_tag": False},
}


@pytest.mark.parametrize("row", RATINGS.values(), ids=RATINGS)
def test_rated_answers_are_recognized(row):
    completion = convert_row(row)

    assert isinstance(completion, LabeledCompletion)
    assert not completion.desirable
    assert [turn.content for turn in completion.messages[completion.completion_start :]] == ["A fish."]


def test_labels_that_are_classes_are_not_ratings():
    row = {"prompt": "Which bird?", "completion": "A heron.", "label": 1}

    assert detect_format(DatasetConfig(source="x"), [row]).format == "prompt_completion"
    assert convert_row(row, format="kto").desirable


def test_columns_of_any_name_can_be_mapped():
    row = {"asked": "Which bird?", "win": "A heron.", "lose": "A fish."}

    pair = convert_row(row, column_map={"prompt": "asked", "chosen": "win", "rejected": "lose"})

    assert (pair.chosen[0].content, pair.rejected[0].content) == ("A heron.", "A fish.")
    # The chosen answers alone can still be learned as answers.
    assert not isinstance(convert_row(row, column_map={"prompt": "asked", "completion": "win"}), PreferencePair)


def test_dialogues_without_a_speaker_and_labels_that_are_text_are_refused():
    with pytest.raises(RowProblemError, match="chosen does not begin with Human:"):
        convert_row({"chosen": "Human: hi", "rejected": f"{HH}A fish."}, format="hh")
    with pytest.raises(RowProblemError, match="label is text, not true or false"):
        convert_row({"prompt": "Q", "completion": "a", "label": "good"}, format="kto")


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(family("qwen2.5"))


def test_a_report_names_every_bad_line_and_what_is_odd(tmp_path, tokenizer):
    rows = [
        *({"prompt": f"Which bird {n}?", "chosen": "A heron, of course.", "rejected": "A fish."} for n in range(30)),
        {"prompt": "Spaces?", "chosen": "A  heron.", "rejected": "A heron."},
        {"prompt": "Equal?", "chosen": "A heron.", "rejected": "A heron."},
        "{broken\n",
        {"prompt": "Missing?", "chosen": "A heron."},
        {"prompt": "Which bird 1?", "chosen": "A heron, of course.", "rejected": "A fish."},
    ]
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)))

    report = check_dataset(config, renderer=Renderer(tokenizer, 256))

    assert [(problem.line, problem.kind) for problem in report.problems] == [
        (32, "equal_answers"), (33, "not_json"), (34, "missing_column"),
    ]  # fmt: skip
    assert [(notice.line, notice.problem) for notice in report.notices] == [
        (31, "the chosen and the rejected answer differ in white space only")
    ]
    assert report.duplicates == 1
    assert any("longer one in 32 of 32 pairs (100%)" in note for note in report.notes)
    assert report.row_lengths.per_row == 2
    assert report.row_lengths.count == report.train_rows
    assert len(report.row_lengths.shared) == len(report.row_lengths.tokens) // 2
    pairs = zip(report.row_lengths.tokens[::2], report.row_lengths.tokens[1::2], report.row_lengths.shared, strict=True)
    assert all(0 < shared < min(pair) for *pair, shared in pairs)


@pytest.mark.parametrize(
    ("rejected", "max_length", "kind", "problem"),
    [
        ("A heron.\n", None, "equal_answers", "the chat template renders both answers equally"),
        ("A heron. Or a fish?", 30, "cut_away", "both answers are equal up to max_length (30 tokens)"),
    ],
    ids=["by the template", "by the cut"],
)
def test_pairs_that_are_equal_once_they_are_rendered_are_left_out(tmp_path, rejected, max_length, kind, problem):
    rows = [{"prompt": "Which bird?", "chosen": "A heron.", "rejected": text} for text in (rejected, "No.")]
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)))

    report = check_dataset(config, renderer=renderer_of(max_length, "llama3"))

    assert (report.kept, report.problem_counts) == (1, {kind: 1})
    assert [row.problem for row in report.problems] == [problem]


@pytest.mark.parametrize("rating", [{}, {"label": True}], ids=["pairs", "ratings"])
def test_rows_of_one_prompt_are_noted_because_none_can_be_held_out(tmp_path, tokenizer, rating):
    rows = [{"prompt": "Which bird?", "chosen": f"A heron {n}.", "rejected": f"A fish {n}."} for n in range(30)]
    if rating:
        rows = [{"prompt": row["prompt"], "completion": row["chosen"], **rating} for row in rows]
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)))

    report = check_dataset(config, renderer=Renderer(tokenizer, 256))

    assert report.held_out_rows == 0
    assert report.why_none_held_out == "No held-out rows: all 30 rows share one prompt."
    assert report.why_none_held_out in report.notes


def test_pairs_of_one_prompt_are_on_one_side_of_the_split(tmp_path, tokenizer, home):
    rows = [
        {"prompt": f"Which bird {n % 10}?", "chosen": f"A heron {n}.", "rejected": f"A fish {n}."} for n in range(60)
    ]
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)), eval_fraction=0.2)

    prepared_data = prepare_dataset(
        config, seed=1, max_length=256, tokenizer=tokenizer, home=home, objective=OBJECTIVES["dpo"]
    )

    sides = [{row.row % 10 for row in part} for part in (prepared_data.train, prepared_data.held_out)]
    assert not sides[0] & sides[1]
    assert len(prepared_data.train) + len(prepared_data.held_out) == 60
    assert len(prepared_data.held_out) == 12


def test_ratings_stay_with_their_answers(tmp_path, tokenizer, home):
    rows = [{"prompt": f"Q {n}?", "completion": f"A {n}.", "label": n % 3 == 0} for n in range(12)]
    config = DatasetConfig(
        source=str(write_rows(tmp_path / "rows.jsonl", [*rows[:5], "{broken\n", *rows[5:]])), eval_fraction=0.3
    )

    prepared_data = prepare_dataset(
        config, seed=1, max_length=256, tokenizer=tokenizer, home=home, objective=OBJECTIVES["kto"]
    )

    for row in (*prepared_data.train, *prepared_data.held_out):
        number = int(tokenizer.decode(row.input_ids).split("A ")[1].split(".")[0])
        assert row.desirable == (number % 3 == 0)


def test_an_objective_refuses_rows_that_it_does_not_learn_from(tmp_path, tokenizer, home):
    pairs = DatasetConfig(
        source=str(write_rows(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": "a", "rejected": "b"}]))
    )

    with pytest.raises(
        DatasetError, match=r"pairs of a chosen and a rejected answer; training\.objective sft"
    ) as refusal:
        prepare_dataset(pairs, seed=1, max_length=256, tokenizer=tokenizer, home=home, objective=OBJECTIVES["sft"])

    assert "dpo or orpo" in refusal.value.fix


def test_where_losses_are_measured_a_pair_is_its_chosen_answer(tmp_path, tokenizer, home):
    rows = [{"prompt": f"Q {n}", "chosen": "good", "rejected": "bad"} for n in range(6)]
    config = DatasetConfig(source=str(write_rows(tmp_path / "pairs.jsonl", rows)))

    prepared_data = prepare_dataset(config, seed=1, max_length=256, tokenizer=tokenizer, home=home)

    assert len(prepared_data.train) + len(prepared_data.held_out) == 6
    assert all("good" in tokenizer.decode(row.input_ids) for row in (*prepared_data.train, *prepared_data.held_out))


def test_the_sample_has_whole_pairs_of_balanced_lengths(tokenizer, home):
    config = DatasetConfig(source="sample:loratory-preferences")

    report = check_dataset(config, SourceOptions(home=home), renderer=Renderer(tokenizer, 256))

    assert (report.format, report.format_sure) == ("preference", True)
    assert report.kept == report.rows >= 150
    assert (report.problems, report.notices, report.duplicates) == ((), (), 0)
    assert not any("longer one" in note for note in report.notes)
