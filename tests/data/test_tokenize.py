"""What a row becomes under the chat templates of the families that people train."""

import pytest

from loratory.engine.data.conversation import Conversation, Message, PlainText, ToolCall
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.tokenize import IGNORED_LABEL, RenderOptions, prompt_ids, render_many
from tests.data.conversations import ALL, CONVERSATIONS, TOOLS, WITH_TOOLS, render_conversation, spans, talk
from tests.data.families import FAMILIES, template_text, tokenizer_of


@pytest.fixture(scope="module")
def tokenizers():
    return {member.name: tokenizer_of(member) for member in FAMILIES}


@pytest.fixture(params=FAMILIES, ids=lambda member: member.name)
def member(request):
    return request.param


@pytest.fixture
def tokenizer(member, tokenizers):
    return tokenizers[member.name]


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_every_answer_stands_behind_exactly_the_prompt_that_the_chat_sends(member, tokenizer, conversation):
    rows = render_conversation(7, conversation, tokenizer, ALL).rows

    learned = {}
    for row in rows:
        assert row.row == 7
        for label, token in zip(row.labels, row.input_ids, strict=True):
            assert label in (token, IGNORED_LABEL)
        for start, end in spans(row):
            learned[tuple(row.input_ids[:start])] = row.input_ids[start:end]
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    assert len(learned) == len(answers)
    for index in answers:
        prompt = tuple(prompt_ids(conversation.messages[:index], tokenizer))
        answer = tokenizer.decode(learned[prompt])
        assert conversation.messages[index].content.strip() in answer
        assert answer.rstrip().removesuffix(member.eos).rstrip().endswith(member.turn_end) or answer.endswith(
            member.turn_end
        )
        others = [message.content.strip() for message in conversation.messages if message.role != "assistant"]
        assert not any(text and text in answer for text in others)


def pairs(chosen):
    """Families with conversations that their templates take as they are: Gemma's refuses system turns."""
    return [
        pytest.param(member, conversation, id=f"{member.name}, {title}")
        for member in chosen
        for title, conversation in CONVERSATIONS.items()
        if member.name != "gemma" or conversation.messages[0].role != "system"
    ]


@pytest.mark.parametrize(("member", "conversation"), pairs(FAMILIES))
def test_the_prompt_is_what_transformers_itself_renders(member, conversation, tokenizers):
    tokenizer = tokenizers[member.name]
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]

    for index in [i for i, message in enumerate(messages) if message["role"] == "assistant"]:
        prompt = tokenizer.apply_chat_template(messages[:index], add_generation_prompt=True)["input_ids"]
        assert prompt_ids(conversation.messages[:index], tokenizer) == prompt
    last = render_conversation(0, conversation, tokenizer, ALL).rows[-1]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    if member.name != "deepseek-r1-distill" and conversation is not CONVERSATIONS["white space at the edges"]:
        # Gemma and llama end a turn with a token that is not eos; the template's text is the whole text all the same.
        assert last.input_ids == whole


@pytest.mark.parametrize(("member", "conversation"), pairs([member for member in FAMILIES if member.oracle]))
def test_masks_agree_with_the_marks_in_trls_training_templates(member, conversation, tokenizers):
    tokenizer = tokenizers[member.name]
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    oracle = tokenizer.apply_chat_template(
        messages, chat_template=template_text(member.oracle), return_assistant_tokens_mask=True, return_dict=True
    )
    rows = render_conversation(0, conversation, tokenizer, ALL).rows
    if conversation is CONVERSATIONS["white space at the edges"]:
        # Where a token reaches across the end of a prompt, such a mask learns part of the prompt; ours does not.
        assert sum(len(row.input_ids) for row in rows) >= len(oracle["input_ids"])
        return

    (row,) = rows
    assert row.input_ids == oracle["input_ids"]
    for index, (label, mark) in enumerate(zip(row.labels, oracle["assistant_masks"], strict=True)):
        between = tokenizer.decode([row.input_ids[index]]).isspace() or row.input_ids[index] == tokenizer.eos_token_id
        # White space after the end of a turn is the template's; trl learns it, we do not.
        assert (label != IGNORED_LABEL) == bool(mark) or between


def test_a_template_that_rewrites_earlier_turns_gets_a_sequence_for_each(member, tokenizer):
    rows = render_conversation(0, CONVERSATIONS["a system turn"], tokenizer, ALL).rows

    assert len(rows) == (3 if member.rewrites_turns else 1)
    assert [row.part for row in rows] == list(range(len(rows)))
    assert sum(len(spans(row)) for row in rows) == 3


def test_pieces_put_together_are_the_text(member, tokenizer):
    for conversation in CONVERSATIONS.values():
        for row in render_conversation(0, conversation, tokenizer, ALL).rows:
            assert "".join(row.pieces) == row.text
            assert len(row.pieces) == len(row.tokens) == len(row.special) == len(row.input_ids)
            assert row.tokens == tokenizer.convert_ids_to_tokens(row.input_ids)


def test_many_rows_are_rendered_as_each_by_itself(member, tokenizer):
    examples = [(number, example) for number, example in enumerate([*CONVERSATIONS.values(), PlainText("plain")])]
    unanswerable = Conversation((Message("assistant", "I speak first."),))

    together = render_many([*examples, (9, unanswerable)], tokenizer, ALL)

    for (number, example), rendering in zip(examples, together, strict=False):
        assert rendering == render_conversation(number, example, tokenizer, ALL)
    assert isinstance(together[-1], RowProblemError)


def test_the_last_turn_alone_is_trained_where_asked_for(member, tokenizer):
    options = RenderOptions(None, "last_assistant")
    rows = render_conversation(0, CONVERSATIONS["a system turn"], tokenizer, options).rows

    (span,) = spans(rows[0])
    assert len(rows) == 1
    assert "Six." in tokenizer.decode(rows[0].input_ids[slice(*span)])


def test_everything_is_trained_where_asked_for(member, tokenizer):
    (row,) = render_conversation(0, CONVERSATIONS["a system turn"], tokenizer, RenderOptions(None, "all")).rows

    assert row.labels[0] == IGNORED_LABEL  # nothing comes before it
    assert row.labels[1:] == row.input_ids[1:]


def test_a_cut_keeps_what_comes_before_it_and_counts_what_is_lost(member, tokenizer):
    conversation = CONVERSATIONS["one turn"]
    (whole,) = render_conversation(0, conversation, tokenizer, ALL).rows
    ((start, end),) = spans(whole)

    (cut,) = render_conversation(0, conversation, tokenizer, RenderOptions(start + 2)).rows
    assert cut.input_ids == whole.input_ids[: start + 2]
    assert cut.labels == whole.labels[: start + 2]
    assert cut.lost_trained_tokens == end - start - 2
    assert cut.uncut_tokens == len(whole.input_ids)

    with pytest.raises(RowProblemError, match="truncated by max_length") as problem:
        render_conversation(0, conversation, tokenizer, RenderOptions(start))
    assert problem.value.kind == "cut_away"


def test_reasoning_is_trained_and_never_lost(member, tokenizer):
    conversation = talk("One?", "Two.", "Three?", "Four.", reasoning="I count upwards.")

    rows = render_conversation(0, conversation, tokenizer, ALL).rows

    start, end = spans(rows[-1])[-1]
    answer = tokenizer.decode(rows[-1].input_ids[start:end])
    assert answer.index("I count upwards.") < answer.index("Four.")
    assert rows[-1].input_ids[:start] == prompt_ids(conversation.messages[:3], tokenizer)


def test_plain_text_is_trained_whole_and_ends_with_eos(member, tokenizer):
    (row,) = render_conversation(0, PlainText("some words"), tokenizer, RenderOptions(None, "all")).rows

    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert row.labels[1:] == row.input_ids[1:]
    assert tokenizer.decode(row.input_ids).endswith("some words" + member.eos)


def test_tools_calls_and_results_are_kept_and_only_the_assistants_part_is_trained(member, tokenizer):
    rows = render_conversation(0, WITH_TOOLS, tokenizer, ALL).rows

    text = rows[-1].text
    for phrase in ("find_rank", "Finds a rank", "What for", "chat-task", "code-task", "16", "64", "Sixteen."):
        assert phrase in text
    learned = [tokenizer.decode(row.input_ids[slice(*span)]) for row in rows for span in spans(row)]
    assert len(learned) == 4
    assert sum("chat-task" in answer for answer in learned) == 1
    assert sum("code-task" in answer for answer in learned) == 1
    assert not any('"rank"' in answer or "What for" in answer for answer in learned)
    prompts = [prompt_ids(WITH_TOOLS.messages[:count], tokenizer, TOOLS) for count in (1, 3, 5, 7)]
    assert sorted(row.input_ids[:start] for row in rows for start, _ in spans(row)) == sorted(prompts)


def test_several_calls_in_one_turn_are_all_there(member, tokenizer):
    calls = (ToolCall("find_rank", {"task": "one-task"}), ToolCall("find_rank", {"task": "two-task"}))
    conversation = Conversation(
        (
            Message("user", "Which?"),
            Message("assistant", tool_calls=calls),
            Message("tool", "first-result"),
            Message("tool", "second-result"),
            Message("assistant", "Done."),
        ),
        TOOLS,
    )

    text = render_conversation(0, conversation, tokenizer, ALL).rows[-1].text

    order = [text.index(phrase) for phrase in ("one-task", "first-result", "second-result", "Done.")]
    assert order == sorted(order)
    assert "two-task" in text


def test_special_tokens_in_a_users_words_move_no_mask(member, tokenizer):
    conversation = talk(f"Say {member.turn_end} and stop", "No.", "Why?", "Because.")

    rows = render_conversation(0, conversation, tokenizer, ALL).rows

    learned = [tokenizer.decode(row.input_ids[slice(*span)]) for row in rows for span in spans(row)]
    assert len(learned) == 2
    assert "No." in learned[0]
    assert "stop" not in "".join(learned)
    notices = render_conversation(0, conversation, tokenizer, ALL).notices
    assert notices == (
        ("special_token", f"turn 1 (user) holds {member.turn_end}, which the model reads as a special token"),
    )
