"""Rows with images: text, tokens, labels and tensors, against TRL's vision collator; and where a row is cut."""

from dataclasses import replace

import pytest
import torch

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message, PlainText, PreferencePair
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.passes.prepare import TokenizedRows, prepare_dataset
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.adapt import TemplateAbilities, adapt_to_template
from loratory.engine.data.render.tokenize import IGNORED_LABEL, Rendering, RenderOptions, prompt_ids, render_many
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.source import ModelSource
from tests.data.checks import write_rows
from tests.data.families import shared_tokenizer
from tests.data.pictures import picture
from tests.image_rows import FORMS, batches, compare, image_rows, render, rows_of, trl_batch
from tests.tiny_vision import MEMBERS, make_vision_folder, trl_processor

SQUARE, WIDE = ImageRef("a" * 64, 100, 100), ImageRef("b" * 64, 200, 60)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return tokenizers, and transformers' processors, by model type."""
    root = tmp_path_factory.mktemp("families")
    result = {}
    for member in MEMBERS:
        folder = make_vision_folder(root / member.model_type, member)
        tokenizer, _ = load_tokenizer(ModelSource(str(folder), member.model_type))
        result[member.model_type] = tokenizer, trl_processor(folder, member)
    return result


@pytest.fixture(params=MEMBERS, ids=lambda member: member.model_type)
def member(request):
    return request.param


@pytest.fixture
def tokenizer(member, loaded):
    return loaded[member.model_type][0]


@pytest.fixture
def qwen(loaded):
    return loaded["qwen2_5_vl"][0]


def row_of(*turns, tokenizer, train_on="assistant", max_length=None):
    return render_many([(0, Conversation(turns))], tokenizer, RenderOptions(max_length, train_on))[0]


def user(content, *images):
    return Message("user", content, images=images)


def answer(content, *images):
    return Message("assistant", content, images=images)


@pytest.mark.parametrize(("form", "train_on"), FORMS)
def test_rows_are_those_of_trls_vision_collator(member, form, train_on, loaded):
    tokenizer, processor = loaded[member.model_type]
    # Idefics3's processor fails on some batches with marks of answers: one row at a time then.
    size = 1 if (member.model_type, train_on) == ("idefics3", "assistant") else 3
    comparisons = [
        compare(batch, tokenizer, processor, member, form, train_on) for batch in batches(image_rows(12), size)
    ]

    assert sum(comparison.rows for comparison in comparisons) == 12
    assert all(comparison.tensors for comparison in comparisons if size > 1)
    # TRL trains tokens of images where every token is trained; we never do.
    assert bool(sum(comparison.image_labels for comparison in comparisons)) == (train_on == "all")
    # Where what an image becomes depends on the images after it, an earlier answer has what the chat sends.
    apart = sum(comparison.sequences_apart for comparison in comparisons)
    assert apart == (1 if member.model_type == "llava_onevision" and train_on == "assistant" else 0)


def test_each_answer_follows_the_prompt_that_the_chat_sends(tokenizer):
    turns = (user(f"{IMAGE_MARK}What?", SQUARE), answer("A cat."), user(f"And {IMAGE_MARK}?", WIDE), answer("A dog."))

    trained: dict[tuple[int, ...], int] = {}
    for row in row_of(*turns, tokenizer=tokenizer).rows:
        starts = [
            i for i, label in enumerate(row.labels) if label != IGNORED_LABEL and row.labels[i - 1] == IGNORED_LABEL
        ]
        trained |= {tuple(row.input_ids[:start]): start for start in starts}

    assert set(trained) == {tuple(prompt_ids(turns[:count], tokenizer)) for count in (1, 3)}


def test_tokens_of_an_image_are_never_trained(member, tokenizer):
    turns = (user("Draw a cat."), answer(f"Here: {IMAGE_MARK} and that is all.", SQUARE))
    if member.model_type == "qwen3_vl":  # its template writes no image of an assistant
        assert row_of(*turns, tokenizer=tokenizer).kind == "template"
        return
    for train_on in ("assistant", "all"):
        (row,) = row_of(*turns, tokenizer=tokenizer, train_on=train_on).rows
        ((first, after),) = row.image_spans

        assert row.images == (SQUARE,)
        assert tokenizer.image_text.image_token_id in row.input_ids[first:after]
        assert tokenizer.image_text.image_token_id not in row.input_ids[:first] + row.input_ids[after:]
        assert set(row.labels[first:after]) == {IGNORED_LABEL}
        assert row.trained_tokens > 5
        trained = "".join(row.pieces[i] for i, label in enumerate(row.labels) if label != IGNORED_LABEL)
        assert "Here:" in trained
        assert "and that is all." in trained


def test_a_row_is_not_cut_within_an_image_and_trl_cuts_it(member, loaded):
    tokenizer, processor = loaded[member.model_type]
    image_row = image_rows(1)[0]
    (row,) = rows_of(image_row, tokenizer)
    ((first, after),) = row.image_spans
    middle = (first + after) // 2

    theirs = trl_batch([image_row], processor, member, "prompt_completion", max_length=middle)
    token = tokenizer.image_text.image_token_id
    assert 0 < theirs["input_ids"][0].tolist().count(token) < row.input_ids.count(token)
    with pytest.raises((ValueError, TypeError)):  # and so the run ends
        trl_batch([image_row], processor, member, "conversation", train_on="all", max_length=middle)

    for train_on in ("completion", "all"):
        problem = render(image_row, tokenizer, train_on, max_length=middle)
        assert isinstance(problem, RowProblemError)
        assert problem.kind == "cut_away"
        assert f"max_length ({middle:,} tokens); its images take {after - first:,}" in problem.problem
    (whole,) = rows_of(image_row, tokenizer, len(row.input_ids) - 1)
    assert whole.images == row.images
    assert whole.input_ids == row.input_ids[:-1]


def test_turns_before_an_image_that_does_not_fit_are_kept(member, tokenizer):
    small, more = ImageRef("c" * 64, 50, 50), "and so on " * 30
    turns = [user(f"{IMAGE_MARK}What?", small), answer("A cat."), user(more), answer("Yes.")]
    turns += [user(f"And {IMAGE_MARK}?", WIDE), answer("A dog.")]
    row = row_of(*turns, tokenizer=tokenizer).rows[-1]
    first, after = row.image_spans[1]

    for limit in (after - 1, first + 1, first):
        (part,) = row_of(*turns, tokenizer=tokenizer, max_length=limit).rows
        assert part.images == (small,)
        assert part.lost_trained_tokens > 0
        if member.model_type == "llava_onevision":  # one image alone is another text than one of two
            assert part.image_spans[0][1] < len(part.input_ids)
        else:
            assert part.input_ids == row.input_ids[:first]
    assert row_of(*turns, tokenizer=tokenizer, max_length=len(row.input_ids)).rows[-1].images == (small, WIDE)


def test_a_prompt_of_images_that_does_not_fit_is_a_problem(tokenizer):
    long = row_of(user(IMAGE_MARK * 3, SQUARE, WIDE, SQUARE), answer("yes"), tokenizer=tokenizer, max_length=8)

    assert isinstance(long, RowProblemError)
    assert long.kind == "cut_away"


def test_text_that_means_an_image_is_a_problem_of_the_row(tokenizer):
    for text in tokenizer.image_text.reserved:
        for turns in (
            (user(f"{IMAGE_MARK}what is {text}?", SQUARE), answer("yes")),
            (user("what?"), answer(f"{text} it is")),
        ):
            problem = row_of(*turns, tokenizer=tokenizer)
            assert isinstance(problem, RowProblemError)
            assert (problem.kind, text in problem.problem) == ("special_token", True)
    (problem,) = render_many([(0, PlainText(f"a {text}"))], tokenizer, RenderOptions(None))
    assert isinstance(problem, RowProblemError)
    assert problem.kind == "special_token"


def test_a_model_for_text_takes_no_row_with_images():
    problem = row_of(user(IMAGE_MARK, SQUARE), answer("yes"), tokenizer=shared_tokenizer())

    assert (problem.kind, problem.problem) == (
        "image",
        "it has images, and this model takes none; choose a vision-language model",
    )


def test_a_template_that_leaves_images_out_is_a_problem(qwen, tmp_path, loaded):
    qwen.save_pretrained(tmp_path)
    tokenizer, _ = load_tokenizer(ModelSource(str(tmp_path), "text"))
    tokenizer.image_text = qwen.image_text
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'][-1]['text'] }}<|im_end|>{% endfor %}"
    )

    problem = row_of(user(f"{IMAGE_MARK}what", SQUARE), answer("yes"), tokenizer=tokenizer)

    assert (problem.kind, problem.problem) == ("template", "the model's chat template writes 0 of its 1 images")


def test_a_model_without_a_template_gets_one_that_writes_images(tmp_path):
    folder = make_vision_folder(tmp_path / "model", MEMBERS[2])
    (folder / "chat_template.jinja").unlink()
    tokenizer, template = load_tokenizer(ModelSource(str(folder), "base"))

    (row,) = row_of(user(f"{IMAGE_MARK}what", SQUARE), answer("yes"), tokenizer=tokenizer).rows

    assert "no chat template" in template.warnings[0]
    assert row.text.startswith("### Instruction:\n<|image_pad|><|image_pad|>")
    assert row.images == (SQUARE,)


def test_images_stay_with_their_text_where_turns_are_joined_or_moved():
    system, first, second = (
        Message("system", f"S{IMAGE_MARK}", images=(SQUARE,)),
        user(f"{IMAGE_MARK}A", WIDE),
        user("B"),
    )
    other = replace(WIDE, digest="c" * 64)
    turns = (system, first, replace(second, content=f"B{IMAGE_MARK}", images=(other,)), answer("yes"))

    adaptation = adapt_to_template(Conversation(turns), TemplateAbilities())

    message = adaptation.messages[0]
    assert message.content == f"S{IMAGE_MARK}\n\n{IMAGE_MARK}A\n\nB{IMAGE_MARK}"
    assert message.images == (SQUARE, WIDE, other)


def test_prepared_rows_keep_their_images(qwen):
    rows = TokenizedRows()
    turns = [(user(f"{IMAGE_MARK}{IMAGE_MARK}?", SQUARE, WIDE), answer("yes")), (user("what"), answer("no"))]
    for number, conversation in enumerate([*turns, turns[0]]):
        for row in row_of(*conversation, tokenizer=qwen).rows:
            rows.append(replace(row, row=number))

    assert [row.images for row in rows] == [(SQUARE, WIDE), (), (SQUARE, WIDE)]
    assert rows.image_counts() == [2, 0, 2]
    subset = rows.select([2, 1])
    assert [row.images for row in subset] == [(SQUARE, WIDE), ()]
    other = TokenizedRows()
    for row in rows:
        other.append(replace(row, images=(WIDE, WIDE)) if row.images else row)
    assert other.sha256() != rows.sha256()


def test_both_answers_of_a_pair_follow_the_images_of_its_prompt(tokenizer):
    turns = (user(f"{IMAGE_MARK}what", SQUARE), answer("yes"))
    pair = PreferencePair(turns, completion_start=1, rejected=(answer("no"),))

    (rendering,) = render_many([(0, pair)], tokenizer, RenderOptions(None))

    assert isinstance(rendering, Rendering)
    rows = TokenizedRows(2)
    for row in rendering.rows:
        rows.append(row)
    (chosen,) = rows
    assert chosen.rejected is not None
    assert chosen.images == chosen.rejected.images == (SQUARE,)
    assert rows.image_counts() == [2]


def test_images_of_a_dataset_reach_the_model_with_their_tokens(member, tokenizer, home, tmp_path):
    (tmp_path / "wide.png").write_bytes(picture("red", (200, 60)))
    (tmp_path / "tall.jpg").write_bytes(picture("blue", (50, 90), "JPEG"))
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A color."}]
    rows = [{"messages": turns, "images": [file]} for file in ("wide.png", "tall.jpg")]
    rows.append({"messages": [{"role": "user", "content": "Why?"}, turns[1]]})
    config = DatasetConfig(source=str(write_rows(tmp_path / "rows.jsonl", rows)), eval_fraction=0.0)

    data = prepare_dataset(config, seed=0, max_length=2048, tokenizer=tokenizer, home=home)

    assert sorted(data.train.image_counts()) == [0, 1, 1]
    store = MediaStore(home.media)
    for row in data.train:
        tensors = tokenizer.image_text.tensors([[store.open(image) for image in row.images]])
        assert bool(tensors) == bool(row.images)
        expected = [text for image in row.images for text in tokenizer.image_text.expansions([image])]
        assert row.input_ids.count(tokenizer.image_text.image_token_id) == sum(
            text.count(member.image_token) for text in expected
        )


def test_a_batch_without_images_has_no_tensors_of_images(member, tokenizer):
    assert tokenizer.image_text.tensors([[], []]) == {}
    types = tokenizer.image_text.token_tensors([[1, tokenizer.image_text.image_token_id], [1, 2]])
    assert all(torch.equal(values, torch.tensor([[0, 1], [0, 0]])) for values in types.values())
    assert len(types) == (member.model_type.startswith(("qwen", "gemma")))
