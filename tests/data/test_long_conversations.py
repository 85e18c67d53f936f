"""Long conversations: bounded in time and memory, and reported with their whole length wherever they are cut."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.formats import Converter
from loratory.engine.data.formats.base import Detection
from loratory.engine.data.formats.turns import MAX_CALLS, MAX_TURNS
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render import sequence_plan
from loratory.engine.data.render.sequence_plan import plan_conversation
from loratory.engine.data.render.tokenize import RenderOptions
from tests.data.conversations import ALL, render_conversation, talk
from tests.data.families import FAMILIES, shared_tokenizer


def test_of_too_many_turns_to_render_the_first_are_trained_and_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(sequence_plan, "_MAX_RENDERED_MESSAGES", 10_000)
    conversation = talk(*["word"] * 600)

    plan = plan_conversation(conversation, shared_tokenizer(), "assistant", None)

    (sequence,) = plan.sequences
    assert 60 < len(sequence.trained) < 80
    assert sequence.text.count("<|im_start|>assistant") == len(sequence.trained)
    assert plan.beyond_tokens > 0
    ((kind, reason),) = plan.notices
    assert (kind, reason.split(":")[0]) == ("too_long", f"only its first {len(sequence.trained)} answers are trained")
    short = replace(conversation, messages=conversation.messages[:100])
    assert plan_conversation(short, shared_tokenizer(), "assistant", None).sequences


def test_a_template_that_rewrites_turns_bounds_what_they_repeat(monkeypatch):
    monkeypatch.setattr(sequence_plan, "_MAX_CHARACTERS", 20_000)
    conversation = talk(*["word"] * 200)

    with pytest.raises(RowProblemError, match="rewrites earlier turns"):
        plan_conversation(conversation, shared_tokenizer("qwen3"), "assistant", None)

    assert plan_conversation(conversation, shared_tokenizer(), "assistant", None).sequences


def test_more_turns_or_calls_than_a_row_may_have_are_left_out():
    converter = Converter(Detection("messages", "", {"messages": "messages"}))
    turns = [{"role": role, "content": "a"} for _ in range(MAX_TURNS) for role in ("user", "assistant")]
    calls = [{"function": {"name": "find", "arguments": {}}}] * (MAX_CALLS + 1)

    with pytest.raises(RowProblemError, match=f"{2 * MAX_TURNS:,} turns; {MAX_TURNS:,} is the most") as refusal:
        converter.convert({"messages": turns})
    with pytest.raises(RowProblemError, match="turn 2 makes 1,001 calls; 1,000 is the most"):
        converter.convert({"messages": [turns[0], {**turns[1], "tool_calls": calls}]})

    assert refusal.value.kind == "too_long"
    assert len(converter.convert({"messages": turns[:MAX_TURNS]}).messages) == MAX_TURNS  # type: ignore[attr-defined]


def test_what_a_row_becomes_counts_for_the_time_that_it_may_take(monkeypatch):
    allowed = []

    def record_size(size):
        allowed.append(size)
        return nullcontext()

    monkeypatch.setattr("loratory.engine.data.render.tokenize.rendering_confined", record_size)
    conversation = talk(*["word"] * 100)

    rendering = render_conversation(0, conversation, shared_tokenizer("qwen3"), RenderOptions(None))

    assert len(rendering.rows) == 50
    assert max(allowed) == sum(len(row.text) for row in rendering.rows)


LONG = talk(*(f"{'question' if n % 2 == 0 else 'answer'} {n}: " + "one two " * (n % 7) for n in range(80)))
BEYOND_THE_FIRST_ANSWER = (5, 150, 900)


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("beyond", BEYOND_THE_FIRST_ANSWER)
@pytest.mark.parametrize("name", [*(member.name for member in FAMILIES), "llama2"])
def test_the_length_before_the_cut_is_that_without_one(name, beyond):
    tokenizer = shared_tokenizer(name)
    (first,) = render_conversation(0, Conversation(LONG.messages[:2]), tokenizer, ALL).rows
    cut = len(first.input_ids) + beyond
    whole = render_conversation(0, LONG, tokenizer, ALL).rows
    rows = render_conversation(0, LONG, tokenizer, RenderOptions(cut)).rows

    assert max(row.uncut_tokens for row in rows) == max(row.uncut_tokens for row in whole) > 1000
    for row, uncut in zip(rows, whole, strict=False):
        assert len(row.input_ids) <= cut
        assert (row.input_ids, row.labels) == (uncut.input_ids[:cut], uncut.labels[:cut])


@pytest.mark.parametrize("train_on", ["last_assistant", "completion", "all"])
def test_it_is_so_whatever_is_trained(train_on):
    tokenizer = shared_tokenizer()
    prompt = Conversation(LONG.messages[:2] * 40 + LONG.messages[2:], completion_start=2)
    (whole,) = render_conversation(0, prompt, tokenizer, RenderOptions(None, train_on)).rows

    if train_on == "last_assistant":
        with pytest.raises(RowProblemError, match="truncated by max_length"):
            render_conversation(0, prompt, tokenizer, RenderOptions(200, train_on))
        return
    (cut,) = render_conversation(0, prompt, tokenizer, RenderOptions(200, train_on)).rows
    assert cut.uncut_tokens == whole.uncut_tokens


def test_turns_that_left_no_sequence_count_where_none_lies_beyond_what_was_looked_at():
    """Qwen3's template gives each of these six turns a sequence; of some the cut leaves nothing to learn."""
    conversation = Conversation(LONG.messages[:12])
    whole = render_conversation(0, conversation, shared_tokenizer("qwen3"), ALL).rows
    rows = render_conversation(0, conversation, shared_tokenizer("qwen3"), RenderOptions(60)).rows

    assert len(rows) < len(whole)
    assert rows[-1].uncut_tokens == whole[-1].uncut_tokens
    assert [row.uncut_tokens for row in rows[:-1]] == [row.uncut_tokens for row in whole[: len(rows) - 1]]


def test_a_turn_far_beyond_the_cut_that_the_template_refuses_costs_no_row():
    tokenizer = shared_tokenizer("gemma")
    conversation = Conversation((*LONG.messages[:-1], Message("tool", "no call"), Message("assistant", "An answer.")))

    (row,) = render_conversation(0, conversation, tokenizer, RenderOptions(100)).rows

    assert row.input_ids == render_conversation(0, LONG, tokenizer, RenderOptions(100)).rows[0].input_ids
    assert row.uncut_tokens > 500
