"""How long a conversation is, wherever it is cut: its whole length is reported, though turns beyond the cut are not proved."""

import pytest

from engine.data.conversation import Conversation, Message
from engine.data.records import RowProblemError
from engine.data.render.tokenize import RenderOptions
from tests.data.conversations import ALL, render_conversation, talk
from tests.data.families import FAMILIES, sentencepiece_tokenizer, tokenizer_of

LONG = talk(*(f"{'question' if n % 2 == 0 else 'answer'} {n}: " + "one two " * (n % 7) for n in range(80)))
BEYOND_THE_FIRST_ANSWER = (5, 150, 900)


@pytest.fixture(scope="module")
def tokenizers():
    return {member.name: tokenizer_of(member) for member in FAMILIES} | {"llama2": sentencepiece_tokenizer()}


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("beyond", BEYOND_THE_FIRST_ANSWER)
@pytest.mark.parametrize("name", [*(member.name for member in FAMILIES), "llama2"])
def test_the_length_before_the_cut_is_that_without_one(tokenizers, name, beyond):
    (first,) = render_conversation(0, Conversation(LONG.messages[:2]), tokenizers[name], ALL).rows
    cut = len(first.input_ids) + beyond
    whole = render_conversation(0, LONG, tokenizers[name], ALL).rows
    rows = render_conversation(0, LONG, tokenizers[name], RenderOptions(cut)).rows

    assert max(row.uncut_tokens for row in rows) == max(row.uncut_tokens for row in whole) > 1000
    for row, uncut in zip(rows, whole, strict=False):
        assert len(row.input_ids) <= cut
        assert (row.input_ids, row.labels) == (uncut.input_ids[:cut], uncut.labels[:cut])


@pytest.mark.parametrize("train_on", ["last_assistant", "completion", "all"])
def test_it_is_so_whatever_is_trained(tokenizers, train_on):
    tokenizer = tokenizers["qwen2.5"]
    prompt = Conversation(LONG.messages[:2] * 40 + LONG.messages[2:], completion_start=2)
    (whole,) = render_conversation(0, prompt, tokenizer, RenderOptions(None, train_on)).rows

    if train_on == "last_assistant":
        with pytest.raises(RowProblemError, match="truncated by max_length"):
            render_conversation(0, prompt, tokenizer, RenderOptions(200, train_on))
        return
    (cut,) = render_conversation(0, prompt, tokenizer, RenderOptions(200, train_on)).rows
    assert cut.uncut_tokens == whole.uncut_tokens


def test_turns_that_left_no_sequence_count_where_none_lies_beyond_what_was_looked_at(tokenizers):
    """Qwen3's template gives each of these six turns a sequence; of some the cut leaves nothing to learn."""
    conversation = Conversation(LONG.messages[:12])
    whole = render_conversation(0, conversation, tokenizers["qwen3"], ALL).rows
    rows = render_conversation(0, conversation, tokenizers["qwen3"], RenderOptions(60)).rows

    assert len(rows) < len(whole)
    assert rows[-1].uncut_tokens == whole[-1].uncut_tokens
    assert [row.uncut_tokens for row in rows[:-1]] == [row.uncut_tokens for row in whole[: len(rows) - 1]]


def test_a_turn_far_beyond_the_cut_that_the_template_refuses_costs_no_row(tokenizers):
    tokenizer = tokenizers["gemma"]
    conversation = Conversation((*LONG.messages[:-1], Message("tool", "no call"), Message("assistant", "An answer.")))

    (row,) = render_conversation(0, conversation, tokenizer, RenderOptions(100)).rows

    assert row.input_ids == render_conversation(0, LONG, tokenizer, RenderOptions(100)).rows[0].input_ids
    assert row.uncut_tokens > 500
