"""Rows of every format as conversations, and rows that cannot become one."""

import json

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.conversation import Conversation, Message, PlainText, ToolCall
from loratory.engine.data.formats import Converter, detect_format
from loratory.engine.data.passes.reader import digest_of
from loratory.engine.data.records import RowProblemError


def convert(row, **settings):
    return Converter(detect_format(DatasetConfig(source="x", **settings), [row])).convert(row)


def texts_of(conversation):
    return [(message.role, message.content) for message in conversation.messages]


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


def test_alpaca_joins_instruction_and_input_and_takes_system_and_history():
    row = {**ALPACA, "system": "Be exact.", "history": [["Hi", "Hello"], ["Ready?", "Yes"]]}

    assert texts_of(convert(row)) == [
        ("system", "Be exact."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Ready?"),
        ("assistant", "Yes"),
        ("user", "Add.\n\n1 2"),
        ("assistant", "3"),
    ]


def test_sharegpt_takes_every_role_name_and_keeps_calls_and_observations_in_place():
    row = {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "1"},
            {"from": "gpt", "value": "2"},
            {"from": "user", "value": "3"},
            {"from": "chatgpt", "value": "4"},
            {"from": " Human ", "value": "5"},
            {"from": "bing", "value": "6"},
            {"from": "human", "value": "7"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "8"},
            {"from": "assistant", "value": "9"},
            {"from": "human", "value": "10"},
            {"from": "function_call", "value": '[{"name": "f", "arguments": "not json"}, {"name": "g"}]'},
            {"from": "tool", "value": "11"},
            {"from": "gpt", "value": "12"},
        ],
        "system": "Above all.",
        "tools": '[{"name": "f", "parameters": {}}]',
    }

    conversation = convert(row)

    roles = "system user assistant user assistant user assistant user assistant tool assistant user assistant tool assistant"
    assert [message.role for message in conversation.messages] == roles.split()
    assert conversation.messages[0].content == "Above all.\n\nBe kind."
    assert conversation.messages[8].tool_calls == (ToolCall("f", {"x": 1}),)
    assert conversation.messages[12].tool_calls == (ToolCall("f", "not json"), ToolCall("g", {}))
    assert conversation.tools == ({"name": "f", "parameters": {}},)


def test_messages_take_openai_tool_calls_parts_and_null_content():
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Which "}, {"type": "text", "text": "one?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
                ],
            },
            {"role": "tool", "content": {"found": 1}, "tool_call_id": "call_1", "name": "f"},
            {"role": "assistant", "content": "That one.", "reasoning_content": "I looked."},
        ]
    }

    conversation = convert(row)

    assert conversation.messages == (
        Message("system", "Be brief."),
        Message("user", "Which one?"),
        Message("assistant", tool_calls=(ToolCall("f", {"x": 1}, "call_1"),)),
        Message("tool", '{"found": 1}', name="f", tool_call_id="call_1"),
        Message("assistant", "That one.", reasoning="I looked."),
    )


def test_words_and_the_call_that_follows_them_are_one_turn():
    row = {
        "conversations": [
            {"from": "human", "value": "Which?"},
            {"from": "gpt", "value": "I look it up."},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "One."},
        ]
    }

    assert convert(row).messages[1] == Message("assistant", "I look it up.", tool_calls=(ToolCall("f", {}),))


def test_prompt_and_completion_may_be_text_or_turns():
    assert texts_of(convert({"prompt": "Q", "completion": "A"})) == [("user", "Q"), ("assistant", "A")]

    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    ]
    conversation = convert({"prompt": messages, "completion": [{"role": "assistant", "content": "4"}]})
    assert conversation.completion_start == 3
    assert len(conversation.messages) == 4


def test_a_reasoning_block_becomes_reasoning():
    conversation = convert({"prompt": "Q", "completion": "<think>\nhm\n</think>\n\nA"})

    assert conversation.messages[-1] == Message("assistant", "A", reasoning="hm")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "{}A"},
        {"prompt": "Q", "chosen": "{}A", "rejected": "{}B"},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "{}A", "weight": 0},
                      {"role": "user", "content": "R"}, {"role": "assistant", "content": "B"}]},
    ],
)  # fmt: skip
def test_an_empty_reasoning_block_is_known_and_changes_nothing_else(row):
    text = json.dumps(row)
    with_block, without = (convert(json.loads(text.replace("{}", block))) for block in ("<think></think>", ""))

    assert any(message.has_empty_block for message in with_block.messages)
    assert with_block == without
    assert digest_of(with_block) == digest_of(without)


def test_any_columns_can_be_mapped():
    row = {"q": "Ask", "a": "Answer", "topic": "x"}

    assert texts_of(convert(row, column_map={"instruction": "q", "output": "a"})) == [
        ("user", "Ask"),
        ("assistant", "Answer"),
    ]
    assert convert(row, column_map={"prompt": "q", "completion": "a"}).completion_start == 1
    assert convert(row, format="text", column_map={"text": "a"}) == PlainText("Answer")
    talk = {"dialogue": [{"speaker": "human", "utterance": "1"}, {"speaker": "bing", "utterance": "2"}]}
    mapping = {"conversations": "dialogue", "from": "speaker", "value": "utterance"}
    assert texts_of(convert(talk, format="sharegpt", column_map=mapping)) == [("user", "1"), ("assistant", "2")]


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}

PROBLEMS = {
    "no messages": ({"messages": []}, "empty", "empty list"),
    "role missing": ({"messages": [{"content": "x"}]}, "unknown_role", "turn 1 has no role"),
    "role unknown": (turns(("user", "x"), ("narrator", "y")), "unknown_role", "narrator"),
    "role is a number": ({"messages": [{"role": 3, "content": "x"}]}, "unknown_role", "'3'"),
    "no assistant turn": (turns(("user", "x"), ("system", "y")), "no_assistant_turn", "no assistant turn"),
    "content null": (turns(("user", None), ("assistant", "y")), "not_text", "turn 1 has no content"),
    "content a number": (turns(("user", 5), ("assistant", "y")), "not_text", "the number 5"),
    "content true": (turns(("user", True), ("assistant", "y")), "not_text", "is true"),
    "content an object": (turns(("user", {"a": 1}), ("assistant", "y")), "not_text", "an object"),
    "content a list of numbers": (turns(("user", [1]), ("assistant", "y")), "not_text", "the number 1"),
    "content with a picture": (
        turns(("user", [{"type": "image_url"}]), ("assistant", "y")),
        "image",
        "no column has images",
    ),
    "content with sound": (turns(("user", [{"type": "input_audio"}]), ("assistant", "y")), "not_text", "input_audio"),
    "a turn that is text": ({"messages": ["hello"]}, "not_an_object", "turn 1 is text"),
    "turns that are text": ({"messages": "hello"}, "not_text", "not a list of turns"),
    "turns that look like JSON": ({"messages": "[{]"}, "tools", "not the JSON list"),
    "empty strings": (turns(("user", ""), ("assistant", "")), "empty", "the answer is empty"),
    "an empty answer": ({**ALPACA, "output": " \n"}, "empty", "the answer is empty"),
    "an empty question": ({"instruction": " ", "input": "", "output": "x"}, "empty", "instruction is empty"),
    "an answer that is null": ({**ALPACA, "output": None}, "not_text", "output is null"),
    "an answer that is a list": ({**ALPACA, "output": ["a"]}, "not_text", "output is a list"),
    "an input that is a number": ({**ALPACA, "input": 3}, "not_text", "input is the number 3"),
    "a history of text": ({**ALPACA, "history": ["a"]}, "not_text", "history is not a list of question"),
    "a call without a name": (
        {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}]},
        "tools",
        "turn 2",
    ),
    "a call that is not JSON": (
        {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "f(1)"}]},
        "tools",
        "f(1)",
    ),
    "tool_calls that are text": ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "tools", "not a list"),
    "tools that are not JSON": ({**turns(("user", "x"), ("assistant", "y")), "tools": "[{"}, "tools", "not valid JSON"),
    "tools that are numbers": ({**turns(("user", "x"), ("assistant", "y")), "tools": [1]}, "tools", "list of objects"),
    "empty text": ({"text": "  "}, "empty", "text is empty"),
}


@pytest.mark.parametrize(("row", "kind", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_row_that_cannot_be_trained_from_reports_why(row, kind, message):
    names = {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca", "text": "text"}
    format_ = next(format_ for column, format_ in names.items() if column in row)

    with pytest.raises(RowProblemError) as problem:
        convert(row, format=format_)

    assert problem.value.kind == kind
    assert message in problem.value.problem
    assert "\n" not in problem.value.problem


ODD = {
    "two users in a row": (turns(("user", "1"), ("user", "2"), ("assistant", "3")), "order", "turn 2"),
    "the assistant first": (turns(("assistant", "1"), ("user", "2"), ("assistant", "3")), "order", "speaks first"),
    "a user with an empty turn": (
        turns(("user", " \n"), ("assistant", "1")),
        "empty",
        "turn 1 is the user's, and it is empty",
    ),
    "an empty prompt": ({"prompt": "", "completion": "1"}, "empty", "turn 1 is the user's, and it is empty"),
    "no answer at the end": (turns(("user", "1"), ("assistant", "2"), ("user", "3")), "unanswered", "nothing answers"),
    "a call without a result": (
        {"messages": [{"role": "user", "content": "x"}, CALL, {"role": "user", "content": "y"}, CALL]},
        "tools",
        "the call of f in turn 2 has no result",
    ),
    "a result without a call": (
        turns(("user", "1"), ("tool", "2"), ("assistant", "3")),
        "tools",
        "the result of no call",
    ),
}


@pytest.mark.parametrize(("row", "kind", "message"), ODD.values(), ids=ODD)
def test_what_is_only_odd_is_kept_and_told(row, kind, message):
    notices = convert(row).warnings()

    assert [notice[0] for notice in notices] == [kind]
    assert message in notices[0][1]


def test_nothing_is_odd_about_an_ordinary_conversation():
    assert convert(ALPACA).warnings() == ()
    assert convert({"messages": [{"role": "user", "content": "x"}, CALL]}).warnings() == ()
    turns = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"))
    assert Conversation(turns).warnings() == ()
