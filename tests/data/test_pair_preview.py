"""The preview of pairs: exactly what the trainer's batches hold, the difference marked, and every malformed line reported."""

import itertools

import pytest

from loratory.engine.config.objectives import OBJECTIVES
from loratory.engine.config.run import DatasetConfig
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.contract import PageRequest
from loratory.engine.data.passes.check import finish
from loratory.engine.data.passes.page import differing_tokens, read_page
from loratory.engine.data.passes.prepare import prepare_dataset
from loratory.engine.data.passes.reader import DatasetReader, Renderer
from loratory.engine.data.render.tokenize import IGNORED_LABEL
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.step_plan import PlanSettings
from tests.data.checks import check_dataset, write_rows
from tests.data.families import FAMILIES, renderer_of, shared_tokenizer, tokenizer_of

ANSWER = "A heron, which stands in shallow water until a fish comes by and then is very quick indeed." * 20
CUT = 400  # tokens; that answer is cut there


def write(path, rows):
    return DatasetConfig(source=str(write_rows(path, rows)), eval_fraction=0)


def preview(config, tokenizer, max_length=256, **request):
    """Return the rows of a page as the Data tab shows them."""
    reader = DatasetReader(config, SourceOptions(), Renderer(tokenizer, max_length))
    return finish(read_page(reader, PageRequest(**request))).rows


def tokens_of(view):
    """Return ids and labels of what a person sees."""
    ids = [token for span in view.spans for token in span.ids]
    labels = [token if span.trained else IGNORED_LABEL for span in view.spans for token in span.ids]
    return ids, labels


@pytest.mark.parametrize("member", FAMILIES, ids=lambda member: member.name)
def test_what_is_shown_of_a_pair_is_what_the_trainers_batches_hold(member, tmp_path, home):
    from loratory.engine.training.assembly import TRAINING_OBJECTIVES
    from loratory.engine.training.batching.steps import StepBatches, TrainerSetup

    tokenizer = tokenizer_of(member)
    rows = [
        *({"prompt": f"Which bird {n}?", "chosen": "A heron.", "rejected": "A fish it is."} for n in range(3)),
        {"prompt": "And why?", "chosen": ANSWER, "rejected": "It is."},
    ]
    config = write(tmp_path / "rows.jsonl", rows)
    data = prepare_dataset(config, seed=1, max_length=CUT, tokenizer=tokenizer, home=home, objective=OBJECTIVES["dpo"])
    setup = TrainerSetup(
        PlanSettings(TrainingConfig(per_device_train_batch_size=1), sequences_per_row=2), 0,
        objective=TRAINING_OBJECTIVES["dpo"](),
    )  # fmt: skip
    batches = StepBatches(data.train, setup)
    page_rows = {row.row: row for row in preview(config, tokenizer, CUT)}

    for forward_pass in batches.evaluation_passes():
        (number,) = forward_pass.rows
        page_row = page_rows[data.train[number].row]
        (tensors,) = batches.tensors([forward_pass])
        for side, view in enumerate(page_row.sequences):
            ids, labels = tokens_of(view)
            mask = tensors.inputs["attention_mask"][side].bool()
            assert tensors.inputs["input_ids"][side][mask].tolist() == ids
            width = tensors.inputs["input_ids"].shape[1]
            own = tensors.sequence_of == side
            positions = (tensors.trained.positions[own] - side * width + 1).tolist()
            assert [index for index, label in enumerate(labels) if label != IGNORED_LABEL] == positions
            assert tensors.trained.targets[own].tolist() == [label for label in labels if label != IGNORED_LABEL]
            # The prompt is shown once: none of it is trained, and both sides have it.
            assert tokens_of(page_row.sequences[0])[0][: view.shared_tokens] == ids[: view.shared_tokens]
            assert set(labels[: view.shared_tokens]) == {IGNORED_LABEL}
            assert view.shared_tokens in _ends(view)
        cut = page_row.sequences[0]
        assert (cut.uncut_tokens > cut.tokens) == (page_row.row == 3) == bool(cut.cut_text)


def _ends(view):
    total, ends = 0, []
    for span in view.spans:
        total += span.tokens
        ends.append(total)
    return ends


def test_cut_tokens_are_shown_as_what_follows_the_rest(tmp_path):
    config = write(tmp_path / "rows.jsonl", [{"prompt": "Why?", "chosen": ANSWER, "rejected": "It is."}])

    (row,) = preview(config, shared_tokenizer(), CUT)

    view = row.sequences[0]
    text = "".join(span.text for span in view.spans) + view.cut_text
    assert ANSWER in text
    assert row.sequences[1].cut_text == ""


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("a b c", "a x c", ("010", "010")),
        ("a b c", "a b c d", ("000", "0001")),
        ("a b c d e f", "x b c d y f", ("100010", "100010")),
        ("a b", "x b y", ("11", "111")),  # one token that happens to be equal between differences tells nothing
        ("", "a", ("", "1")),
    ],
)
def test_differing_tokens_are_marked_on_both_sides(left, right, expected):
    numbers = [[ord(token) for token in text.split()] for text in (left, right)]

    marks = differing_tokens(*numbers)

    assert tuple("".join("01"[mark] for mark in side) for side in marks) == expected


def test_answers_too_long_to_compare_differ_between_their_ends():
    middle = list(range(2000)), list(range(5000, 7000))

    left, right = differing_tokens([1, *middle[0], 2], [1, *middle[1], 2])

    assert (left[0], left[-1], sum(left)) == (False, False, 2000)
    assert (right[0], right[-1], sum(right)) == (False, False, 2000)


TURN = {"role": "user", "content": "Which bird?"}
GOOD, BAD = {"role": "assistant", "content": "A heron."}, {"role": "assistant", "content": "A fish."}
MALFORMED = (
    ({"prompt": "Q", "chosen": "same", "rejected": "same"}, "equal_answers", "are equal"),
    ({"prompt": "Q", "chosen": "", "rejected": "b"}, "empty", "the chosen answer is empty"),
    ({"prompt": "Q", "chosen": "a", "rejected": "  "}, "empty", "the rejected answer is empty"),
    ({"prompt": "Q", "chosen": "a"}, "missing_column", "no rejected"),
    ({"prompt": "Q", "rejected": "b"}, "missing_column", "no chosen"),
    ({"prompt": "Q", "chosen": 3, "rejected": "b"}, "not_text", "number 3"),
    ({"prompt": "Q", "chosen": "a", "rejected": None}, "not_text", "null"),
    ({"prompt": "Q", "chosen": ["a"], "rejected": "b"}, "not_an_object", "turn 1 is text"),
    ({"prompt": 7, "chosen": "a", "rejected": "b"}, "not_text", "number 7"),
    ({"prompt": "", "chosen": "alpha", "rejected": "beta"}, "pair", "no prompt"),
    ({"prompt": None, "chosen": [TURN, GOOD], "rejected": [{"role": "user", "content": "Why?"}, BAD]}, "other_prompt", "prompts differ"),
    ({"prompt": None, "chosen": [TURN, GOOD], "rejected": [TURN]}, "pair", "no turn of its own"),
    ({"prompt": None, "chosen": [TURN, GOOD], "rejected": [TURN, GOOD]}, "equal_answers", "are equal"),
    ({"prompt": None, "chosen": [GOOD], "rejected": [BAD]}, "pair", "no prompt"),
    ({"prompt": None, "chosen": [{"role": "elf", "content": "x"}], "rejected": [TURN, BAD]}, "unknown_role", "elf"),
    ({"prompt": None, "chosen": [TURN, {"role": "assistant", "content": 5}], "rejected": [TURN, BAD]}, "not_text", "number 5"),
    ({"prompt": "half \ud800", "chosen": "a", "rejected": "b"}, "bad_text", "lone surrogate"),
    ('{"prompt": "Q", "chosen": "a", "rejected": "b"\n', "not_json", ""),
    ("[1, 2]\n", "not_an_object", ""),
    ('{"prompt": "Q", "prompt": "R", "chosen": "a", "rejected": "b"}\n', "duplicate_key", "prompt"),
)  # fmt: skip


def test_every_line_of_a_list_of_malformed_pairs_is_reported_with_its_reason(tmp_path):
    sound = [{"prompt": f"Q {n}", "chosen": "yes", "rejected": "no"} for n in range(3)]
    config = write(tmp_path / "rows.jsonl", [*sound, *(row for row, _, _ in MALFORMED)])
    config = config.model_copy(update={"format": "preference"})

    report = check_dataset(config, renderer=renderer_of(256))

    problems = {problem.line: (problem.kind, problem.problem) for problem in report.problems}
    assert report.kept == len(sound)
    assert problems.keys() == set(range(len(sound) + 1, len(sound) + 1 + len(MALFORMED)))
    for line, (_, kind, message) in enumerate(MALFORMED, len(sound) + 1):
        assert problems[line][0] == kind, (line, problems[line])
        assert message in problems[line][1], (line, problems[line])


def test_pairs_that_contradict_one_another_are_named_with_their_rows(tmp_path):
    rows = [{"prompt": f"Q {n}", "chosen": "yes", "rejected": "no, never"} for n in range(4)]
    rows.append({"prompt": "Q 1", "chosen": "no, never", "rejected": "yes"})
    rows.append({"prompt": "Q 9", "chosen": "no, never", "rejected": "yes"})  # of another prompt

    report = check_dataset(write(tmp_path / "rows.jsonl", rows))

    assert report.contradictions == 2
    assert report.contradicting_rows == (1, 4)
    assert report.prompts == 5


@pytest.mark.parametrize(("longer", "shorter"), [("a" * 30, "b"), ("a" * 900, "b"), ("aa", "b"), ("ab", "cd")])
def test_differences_in_length_are_counted_around_zero(longer, shorter, tmp_path):
    rows = [{"prompt": f"Q {n}", "chosen": longer, "rejected": shorter} for n in range(6)]
    rows.append({"prompt": "Q", "chosen": "x", "rejected": "y" * 5})

    lengths = check_dataset(write(tmp_path / "rows.jsonl", rows)).pair_lengths

    edges, counts = lengths.histogram.edges, lengths.histogram.counts
    assert sum(counts) == lengths.pairs == 7
    assert lengths.median == len(longer) - len(shorter)
    assert edges[0] + edges[-1] == 1, "as far to one side as to the other; the upper end is not in the bin"
    zero = next(index for index, edge in enumerate(edges) if edge > 0) - 1
    assert edges[zero] <= 0 < edges[zero + 1]
    assert sum(counts[zero + 1 :]) == (6 if longer != "ab" else 0)
    assert len({upper - lower for lower, upper in itertools.pairwise(edges)}) == 1


def test_ratings_report_their_labels_and_their_prompts(tmp_path):
    rows = [{"prompt": f"Q {n % 3}", "completion": f"A {n}", "label": n % 4 > 0} for n in range(12)]
    config = write(tmp_path / "rows.jsonl", rows)

    report = check_dataset(config, renderer=renderer_of(256))
    (row, *_) = preview(config, shared_tokenizer())

    assert (report.desirable, report.kept, report.prompts) == (9, 12, 3)
    assert report.row_lengths.kind == "ratings"
    assert row.desirable is False
    assert row.trained_turns == (1,)
