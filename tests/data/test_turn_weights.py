"""Turns that the data marks with weight 0: they are context and not trained."""

import math
from dataclasses import replace

import pytest

from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.passes.reader import digest_of
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.adapt import abilities_of, adapt_to_template
from loratory.engine.data.render.sequence_plan import trained_turns
from loratory.engine.data.render.tokenize import IGNORED_LABEL, RenderOptions
from tests.data.conversations import ALL, WITH_TOOLS, render_conversation, talk
from tests.data.families import FAMILIES, tokenizer_of
from tests.data.test_convert import convert

TWO_TURNS = talk("What does alpha do?", "It scales.", "And the rank?", "It bounds the capacity.")


def with_context_only(conversation: Conversation, *indexes: int) -> Conversation:
    messages = [replace(m, is_trained=index not in indexes) for index, m in enumerate(conversation.messages)]
    return replace(conversation, messages=tuple(messages))


def trained_text(conversation: Conversation, tokenizer, options=ALL) -> str:
    rows = render_conversation(0, conversation, tokenizer, options).rows
    return "|".join(tokenizer.decode([label for label in row.labels if label != IGNORED_LABEL]) for row in rows)


@pytest.mark.parametrize(
    ("weight", "is_trained"),
    [(0, False), (0.0, False), (False, False), (1, True), (1.0, True), (None, True), (math.nan, True), ("none", True)],
)
@pytest.mark.parametrize(
    ("role_field", "content_field", "assistant"), [("role", "content", "assistant"), ("from", "value", "gpt")]
)
def test_a_weight_says_whether_a_turn_is_trained(weight, is_trained, role_field, content_field, assistant):
    turns = [
        {role_field: "user", content_field: "Hi"},
        {role_field: assistant, content_field: "Hello", "weight": weight},
    ]
    column = "messages" if role_field == "role" else "conversations"

    assert [message.is_trained for message in convert({column: turns}).messages] == [True, is_trained]


def test_a_weight_of_another_person_means_nothing():
    turns = [{"role": "user", "content": "Hi", "weight": 0}, {"role": "assistant", "content": "Hello"}]

    assert all(message.is_trained for message in convert({"messages": turns}).messages)


def test_a_weight_between_is_refused_with_its_turn():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 0.5}]

    with pytest.raises(
        RowProblemError, match=r"turn 2 has the weight 0\.5; 1 is trained, and 0 is context only"
    ) as refusal:
        convert({"messages": turns})
    assert refusal.value.kind == "weight"


def test_words_and_a_call_of_another_weight_stay_apart():
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "weight": 0}
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "I look."}, call]

    assert [message.is_trained for message in convert({"conversations": turns}).messages] == [True, True, False]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_is_only_read_stands_in_the_text_and_is_not_trained(family):
    tokenizer = tokenizer_of(family)
    first, last = with_context_only(TWO_TURNS, 1), with_context_only(TWO_TURNS, 3)

    assert "scales" not in trained_text(first, tokenizer)
    assert "bounds the capacity" in trained_text(first, tokenizer)
    assert "It scales." in render_conversation(0, first, tokenizer, ALL).rows[-1].text
    assert "scales" in trained_text(last, tokenizer)
    assert "bounds" not in trained_text(last, tokenizer)
    assert "scales" in trained_text(first, tokenizer, RenderOptions(None, "all"))


def test_the_setting_and_the_weights_both_hold():
    tokenizer = tokenizer_of(FAMILIES[1])

    with pytest.raises(RowProblemError, match="every assistant turn has weight 0"):
        render_conversation(0, with_context_only(TWO_TURNS, 1, 3), tokenizer, ALL)
    with pytest.raises(RowProblemError, match="every assistant turn has weight 0"):
        render_conversation(0, with_context_only(TWO_TURNS, 3), tokenizer, RenderOptions(None, "last_assistant"))
    assert trained_turns(with_context_only(TWO_TURNS, 1), "assistant") == (3,)
    assert trained_turns(with_context_only(TWO_TURNS, 1), "all") == (0, 1, 2, 3)


def test_turns_that_a_template_makes_one_are_not_trained_with_one_that_is_not():
    abilities = replace(abilities_of(tokenizer_of(FAMILIES[1])), repeated_roles=False)
    conversation = Conversation((Message("user", "Hi"), Message("assistant", "One."), Message("assistant", "Two.")))

    for context, expected in ((conversation, [True, True]), (with_context_only(conversation, 1), [True, False])):
        messages = adapt_to_template(context, abilities).messages
        assert [message.is_trained for message in messages] == expected


def test_calls_that_a_template_takes_one_by_one_keep_the_weight_of_their_turn():
    abilities = replace(abilities_of(tokenizer_of(FAMILIES[1])), tool_calls=True, parallel_calls=False)
    calls = WITH_TOOLS.messages[1].tool_calls * 2
    conversation = replace(WITH_TOOLS, messages=(Message("user", "Hi"), Message("assistant", tool_calls=calls)))

    split = adapt_to_template(with_context_only(conversation, 1), abilities).messages
    assert [message.is_trained for message in split] == [True, False, False]


def test_rows_that_differ_in_a_weight_alone_are_not_duplicates():
    assert digest_of(TWO_TURNS) != digest_of(with_context_only(TWO_TURNS, 1))
    assert digest_of(WITH_TOOLS) != digest_of(with_context_only(WITH_TOOLS, 3))
    assert digest_of(with_context_only(TWO_TURNS, 1)) != digest_of(with_context_only(TWO_TURNS, 3))
