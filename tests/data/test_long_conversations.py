"""Long conversations: the very plan that proving each turn by the whole conversation gives, in time that grows with their length."""

import random
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest

from engine.data.conversation import Conversation, Message, ToolCall
from engine.data.formats import Converter
from engine.data.formats.base import Detection
from engine.data.formats.turns import MAX_CALLS, MAX_TURNS
from engine.data.records import RowProblemError
from engine.data.render import turn_renderer
from engine.data.render.sequence_plan import plan_conversation
from engine.data.render.template import DEFAULT_TEMPLATE, apply_template
from engine.data.render.tokenize import RenderOptions
from tests.data.conversations import TOOLS, render_conversation
from tests.data.families import CORPUS, FAMILIES, family, sentencepiece_tokenizer, tokenizer_of

WORDS = (*CORPUS.split(), "<think>", "ok", "OK\n", "\n\n", "  ", "é😀", "<|im_end|>", "### Response:\n")
# Its turns are numbered from the end, and it shortens what is old: rendered in windows, neither comes out.
BACKWARDS = (
    "{% for m in messages %}{{ loop.revindex }} {{ m.role }}: {{ m.content }}\n{% endfor %}{{ messages|length }}"
)
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.revindex < 40 else '…' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ loop.index }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {{ messages|length + 1 }}\n{% endif %}"
)


TEMPLATES = {"default": DEFAULT_TEMPLATE, "backwards": BACKWARDS, "forgetful": FORGETFUL, "counting": COUNTING}
TOKENIZERS = (*(one.name for one in FAMILIES), "llama2", *TEMPLATES)


@cache
def tokenizer_named(name):
    if name == "llama2":
        return sentencepiece_tokenizer()
    if name not in TEMPLATES:
        return tokenizer_of(family(name))
    tokenizer = tokenizer_of(FAMILIES[1])
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def conversation(draw: random.Random, turns: int) -> Conversation:
    """Mostly questions and answers; some of everything else that conversations hold."""

    def words() -> str:
        return " ".join(draw.choices(WORDS, k=draw.choice((0, 1, 1, 2, 5, 12))))

    kind = draw.choice(("plain", "plain", "reasoning", "mixed", "tools"))
    messages = [Message("system", words())] if draw.random() < 0.5 else []
    for number in range(turns):
        messages.append(Message("user", words()))
        if kind == "mixed" and draw.random() < 0.1:
            messages.append(draw.choice((Message("user", words()), Message("system", words()))))
        if kind == "tools" and draw.random() < 0.4:
            messages.append(Message("assistant", words(), tool_calls=(ToolCall("find_rank", {"task": str(number)}),)))
            messages.append(Message("tool", words() or "16"))
        reasoning = words() if kind in ("reasoning", "mixed") and draw.random() < 0.5 else None
        trained = kind != "mixed" or draw.random() < 0.8
        messages.append(Message("assistant", words(), reasoning=reasoning, is_trained=trained))
    return Conversation(tuple(messages), TOOLS if kind == "tools" else ())


def plan_row(*arguments):
    """All that a plan says."""
    try:
        plan = plan_conversation(*arguments)
    except RowProblemError as problem:
        return problem.kind, problem.problem
    every = (*plan.sequences, *([plan.whole] if plan.whole else []))
    sequences = [(one.text, [(turn.prompt, turn.answer) for turn in one.trained]) for one in every]
    return sequences, plan.notes, plan.notices, plan.beyond_tokens


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_plan_is_the_one_that_whole_renderings_give(monkeypatch, name):
    draw = random.Random(f"turns of {name}")
    tokenizer = tokenizer_named(name)
    for number in range(12):
        talk = conversation(draw, draw.randint(4, 40))
        train_on = draw.choice(("assistant", "assistant", "completion", "last_assistant"))
        max_length = draw.choice((None, None, 64, 300))
        monkeypatch.setattr(turn_renderer, "_WHOLE_TURNS", len(talk.messages))

        expected = plan_row(talk, tokenizer, train_on, max_length)

        monkeypatch.setattr(turn_renderer, "_WHOLE_TURNS", 3)
        assert plan_row(talk, tokenizer, train_on, max_length) == expected, (name, number)


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3.1", "phi3", "deepseek-r1-distill", "llama2", "default"])
def test_few_messages_are_rendered_for_each_turn_of_a_long_conversation(monkeypatch, name):
    talk = Conversation(
        tuple(Message(role, f"{role} {number}") for number in range(600) for role in ("user", "assistant"))
    )
    rendered = []

    def counted(tokenizer, messages, tools, *, prompt):
        rendered.append(len(messages))
        return apply_template(tokenizer, messages, tools, prompt=prompt)

    monkeypatch.setattr(turn_renderer, "apply_template", counted)

    plan_conversation(talk, tokenizer_named(name), "assistant", 3000)

    assert sum(rendered) < 50 * len(talk.messages)


def test_a_template_that_needs_every_turn_in_whole_leaves_a_long_row_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(turn_renderer, "_MAX_WORK", 10_000)
    talk = Conversation(tuple(Message(role, "word") for _ in range(300) for role in ("user", "assistant")))

    with pytest.raises(RowProblemError, match="its 600 turns take too long to render") as refusal:
        plan_conversation(talk, tokenizer_named("counting"), "assistant", None)

    assert refusal.value.kind == "too_long"
    short = replace(talk, messages=talk.messages[:100])
    assert plan_conversation(short, tokenizer_named("counting"), "assistant", None).sequences


def test_a_template_that_rewrites_turns_bounds_what_they_repeat(monkeypatch):
    monkeypatch.setattr("engine.data.render.sequence_plan._MAX_CHARACTERS", 20_000)
    talk = Conversation(tuple(Message(role, "word") for _ in range(100) for role in ("user", "assistant")))

    with pytest.raises(RowProblemError, match="rewrites earlier turns"):
        plan_conversation(talk, tokenizer_named("qwen3"), "assistant", None)

    assert plan_conversation(talk, tokenizer_named("qwen2.5"), "assistant", None).sequences


def test_turns_with_more_calls_than_anybody_makes_are_left_out():
    converter = Converter(Detection("messages", "", {"messages": "messages"}))
    calls = [{"function": {"name": "find", "arguments": {}}}] * (MAX_CALLS + 1)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": calls}]

    with pytest.raises(RowProblemError, match="turn 2 makes 1,001 calls; 1,000 is the most"):
        converter.convert({"messages": turns})


def test_rows_with_more_turns_than_anybody_has_are_left_out():
    converter = Converter(Detection("messages", "", {"messages": "messages"}))
    turns = [{"role": role, "content": "a"} for _ in range(MAX_TURNS) for role in ("user", "assistant")]

    with pytest.raises(RowProblemError, match=f"{2 * MAX_TURNS:,} turns; {MAX_TURNS:,} is the most") as refusal:
        converter.convert({"messages": turns})

    assert refusal.value.kind == "too_long"
    assert len(converter.convert({"messages": turns[:MAX_TURNS]}).messages) == MAX_TURNS  # type: ignore[union-attr]


def test_what_a_row_becomes_counts_for_the_time_that_it_may_take(monkeypatch):
    allowed = []

    def confined(size):
        allowed.append(size)
        return nullcontext()

    monkeypatch.setattr("engine.data.render.tokenize.rendering_confined", confined)
    talk = Conversation(tuple(Message(role, "word") for _ in range(50) for role in ("user", "assistant")))

    rendering = render_conversation(0, talk, tokenizer_named("qwen3"), RenderOptions(None))

    assert len(rendering.rows) == 50
    assert max(allowed) == sum(len(row.text) for row in rendering.rows)
