"""Templates and tokenizers with ways of their own, and rows from which no one could learn."""

from typing import Any

import pytest

from loratory.engine.data.conversation import Conversation, Message, PlainText
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.tokenize import RenderOptions, prompt_ids
from tests.data.conversations import ALL, CONVERSATIONS, WITH_TOOLS, render_conversation, spans, talk
from tests.data.families import family, sentencepiece_tokenizer, shared_tokenizer, tokenizer_of


def test_a_gemma_without_system_turns_reads_them_in_the_users():
    tokenizer = tokenizer_of(family("gemma"))

    rendering = render_conversation(0, CONVERSATIONS["a system turn"], tokenizer, ALL)

    assert "user\nAnswer in one word.\n\nOne?<end_of_turn>" in rendering.rows[0].text
    assert "system turn" in rendering.notes[0]


MOVING_SYSTEM = (
    "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}"
    "{%- set turns = messages[1:] if system else messages -%}"
    "{%- set asked = turns | selectattr('role', 'equalto', 'user') | list -%}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}[INST] {{ system + ' ' if system and turn == asked[-1] else '' }}"
    "{{ turn['content'] }}[/INST]"
    "{%- else -%}{{ ' ' + turn['content'] + eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)


def test_a_template_that_moves_the_system_prompt_gets_a_sequence_for_each_turn():
    tokenizer = tokenizer_of(family("qwen2.5"))
    tokenizer.chat_template = MOVING_SYSTEM
    conversation = CONVERSATIONS["a system turn"]

    rows = render_conversation(0, conversation, tokenizer, ALL).rows

    assert [len(spans(row)) for row in rows] == [1, 1, 1]
    assert "[INST] Answer in one word. One?[/INST]" in rows[0].text
    assert "[INST] One?[/INST]" in rows[1].text
    for row, turn_count in zip(rows, (2, 4, 6), strict=True):
        ((start, _),) = spans(row)
        assert row.input_ids[:start] == prompt_ids(conversation.messages[:turn_count], tokenizer)


def test_a_template_that_ends_no_turn_gets_eos_to_learn():
    tokenizer = tokenizer_of(family("qwen2.5"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )

    (row,) = render_conversation(0, CONVERSATIONS["one turn"], tokenizer, ALL).rows

    assert row.labels[-1] == tokenizer.eos_token_id


def test_a_template_whose_prompt_does_not_begin_its_answers_is_refused():
    tokenizer = tokenizer_of(family("qwen2.5"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}bot says{% endif %}"
    )

    with pytest.raises(RowProblemError, match="bot says"):
        render_conversation(0, CONVERSATIONS["one turn"], tokenizer, ALL)


def test_the_completion_is_what_follows_the_last_question():
    tokenizer = tokenizer_of(family("qwen2.5"))

    (row,) = render_conversation(0, WITH_TOOLS, tokenizer, RenderOptions(None, "completion")).rows

    learned = [tokenizer.decode(row.input_ids[slice(*span)]) for span in spans(row)]
    assert len(learned) == 2
    assert "code-task" in learned[0]
    assert "Sixty-four." in learned[1]


@pytest.mark.parametrize("turns", [[("assistant", "I speak first.")], [("user", "One?"), ("assistant", " ")]])
def test_rows_without_an_answer_to_train_on_are_reported(turns):
    with pytest.raises(RowProblemError) as problem:
        render_conversation(0, Conversation(tuple(Message(*turn) for turn in turns)), shared_tokenizer(), ALL)

    assert problem.value.kind == "nothing_to_learn"


def test_a_question_without_an_answer_at_the_end_is_left_out():
    conversation = talk("One?", "Two.", "Three?")

    rendering = render_conversation(0, conversation, tokenizer_of(family("qwen2.5")), ALL)

    assert "Three?" not in rendering.rows[0].text
    assert rendering.notices == ()


def test_turns_that_a_template_leaves_out_are_named():
    tokenizer = tokenizer_of(family("phi3"))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'lost' not in m['content'] %}<|user|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|user|>{% endif %}"
    )
    conversation = Conversation((Message("user", "One?"), Message("user", "lost words"), Message("assistant", "Two.")))

    rendering = render_conversation(0, conversation, tokenizer, ALL)

    assert [kind for kind, _ in rendering.notices] == ["template_leaves_out"]
    assert "lost words" in rendering.notices[0][1]


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_sentencepiece_tokenizer_keeps_prompts_and_answers_apart(conversation):
    tokenizer = sentencepiece_tokenizer()

    rows = render_conversation(0, conversation, tokenizer, ALL).rows

    learned = {tuple(row.input_ids[:start]): row.input_ids[start:end] for row in rows for start, end in spans(row)}
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    assert len(learned) == len(answers)
    for index in answers:
        answer = learned[tuple(prompt_ids(conversation.messages[:index], tokenizer))]
        assert (
            tokenizer.decode(answer).strip().removesuffix("</s>").strip()
            == conversation.messages[index].content.strip()
        )
        assert answer[-1] == tokenizer.eos_token_id
    for row in rows:
        assert "".join(row.pieces) == row.text


def test_a_tokenizer_that_adds_eos_by_itself_adds_no_second_one():
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = tokenizer_of(family("llama3"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A <|eot_id|>",
        special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id), ("<|eot_id|>", tokenizer.eos_token_id)],
    )

    (row,) = render_conversation(0, PlainText("some words"), tokenizer, ALL).rows

    assert row.input_ids[0] == tokenizer.bos_token_id
    assert row.input_ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_turns_far_beyond_the_cut_cost_no_time_and_are_counted_as_lost(name):
    tokenizer: Any = tokenizer_of(family(name))
    talk_of = lambda count: talk(*(f"{number} what does it do" for number in range(2 * count)))  # noqa: E731
    renderings = []
    apply = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda *args, **kwargs: renderings.append(1) or apply(*args, **kwargs)

    short = render_conversation(0, talk_of(40), tokenizer, RenderOptions(300)).rows
    needed = len(renderings)
    long = render_conversation(0, talk_of(2000), tokenizer, RenderOptions(300)).rows

    assert len(renderings) - needed <= 100
    assert [(row.input_ids, row.labels) for row in long] == [(row.input_ids, row.labels) for row in short]
    lost_tokens = sum(row.lost_trained_tokens for row in long)
    assert lost_tokens > 10 * sum(row.lost_trained_tokens for row in short) > 0
