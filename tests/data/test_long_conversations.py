"""Long conversations: bounded in time and memory."""

from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest

from engine.data.conversation import Conversation, Message
from engine.data.formats import Converter
from engine.data.formats.base import Detection
from engine.data.formats.turns import MAX_CALLS, MAX_TURNS
from engine.data.records import RowProblemError
from engine.data.render import sequence_plan
from engine.data.render.sequence_plan import plan_conversation
from engine.data.render.tokenize import RenderOptions
from tests.data.conversations import render_conversation
from tests.data.families import family, tokenizer_of


@cache
def tokenizer_named(name):
    return tokenizer_of(family(name))


def test_of_too_many_turns_to_render_the_first_are_trained_and_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(sequence_plan, "_MAX_RENDERED_MESSAGES", 10_000)
    talk = Conversation(tuple(Message(role, "word") for _ in range(300) for role in ("user", "assistant")))

    plan = plan_conversation(talk, tokenizer_named("qwen2.5"), "assistant", None)

    (sequence,) = plan.sequences
    assert 60 < len(sequence.trained) < 80
    assert sequence.text.count("<|im_start|>assistant") == len(sequence.trained)
    assert plan.beyond_tokens > 0
    ((kind, reason),) = plan.notices
    assert (kind, reason.split(":")[0]) == ("too_long", f"only its first {len(sequence.trained)} answers are trained")
    short = replace(talk, messages=talk.messages[:100])
    assert plan_conversation(short, tokenizer_named("qwen2.5"), "assistant", None).sequences


def test_a_template_that_rewrites_turns_bounds_what_they_repeat(monkeypatch):
    monkeypatch.setattr(sequence_plan, "_MAX_CHARACTERS", 20_000)
    talk = Conversation(tuple(Message(role, "word") for _ in range(100) for role in ("user", "assistant")))

    with pytest.raises(RowProblemError, match="rewrites earlier turns"):
        plan_conversation(talk, tokenizer_named("qwen3"), "assistant", None)

    assert plan_conversation(talk, tokenizer_named("qwen2.5"), "assistant", None).sequences


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

    monkeypatch.setattr("engine.data.render.tokenize.rendering_confined", record_size)
    talk = Conversation(tuple(Message(role, "word") for _ in range(50) for role in ("user", "assistant")))

    rendering = render_conversation(0, talk, tokenizer_named("qwen3"), RenderOptions(None))

    assert len(rendering.rows) == 50
    assert max(allowed) == sum(len(row.text) for row in rendering.rows)
