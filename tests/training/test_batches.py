"""What a pass learns: at each position the token that follows it in its own row."""

import pytest
import torch

from engine.config.rules import JOINED_MULTIPLE
from engine.training.batching.batches import join, join_pairs, pad
from engine.training.ops.attention import Fork
from tests.training.tiny_training import Row

FIRST = Row([11, 12, 13, 14], [-100, -100, 13, 14])
SECOND = Row([21, 22, 23], [21, 22, 23])  # even its first token is marked, but nothing stands before it


def trained_pairs(one) -> list[tuple[int, int]]:
    """(token at the position, token that is learned there)."""
    flat = one.inputs["input_ids"].flatten()
    return [(int(flat[p]), int(t)) for p, t in zip(one.trained.positions, one.trained.targets, strict=True)]


def test_joined_rows_learn_within_themselves():
    one = join([FIRST, SECOND])

    assert one.inputs["input_ids"][0, :7].tolist() == [11, 12, 13, 14, 21, 22, 23]
    assert one.inputs["position_ids"][0, :7].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert one.inputs["joined_rows"].lengths[:2] == (4, 3)
    assert trained_pairs(one) == [(12, 13), (13, 14), (21, 22), (22, 23)]
    assert (one.tokens, one.trained_tokens) == (7, 4)


def test_joined_tokens_are_filled_up_with_a_row_of_their_own():
    one = join([FIRST, SECOND])

    assert one.inputs["input_ids"].shape == (1, JOINED_MULTIPLE)
    assert one.inputs["joined_rows"].lengths == (4, 3, JOINED_MULTIPLE - 7)
    assert one.inputs["position_ids"][0, 7:].tolist() == list(range(JOINED_MULTIPLE - 7))


def test_the_beginning_that_two_answers_share_is_there_once():
    other = Row([11, 12, 13, 15, 16], [-100, -100, 13, 15, 16])  # begins like FIRST with a trained token

    one = join_pairs([FIRST, other, SECOND, SECOND])

    assert one.inputs["input_ids"][0, :9].tolist() == [11, 12, 13, 14, 15, 16, 21, 22, 23]
    assert one.inputs["position_ids"][0, :9].tolist() == [0, 1, 2, 3, 3, 4, 0, 1, 2]
    rows = one.inputs["joined_rows"]
    assert (rows.lengths, rows.forks) == ((6, 3, JOINED_MULTIPLE - 9), (Fork(3, 4), Fork(3, 3)))
    assert trained_pairs(one) == [
        (12, 13), (13, 14), (12, 13), (13, 15), (15, 16), (21, 22), (22, 23), (21, 22), (22, 23),
    ]  # fmt: skip
    assert one.sequence_of.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert (one.tokens, one.sequences, one.sequence_tokens) == (15, 4, (2, 3, 2, 2))


def test_padded_rows_learn_the_same():
    one = pad([FIRST, SECOND], pad_token_id=9)

    assert one.inputs["input_ids"].tolist() == [[11, 12, 13, 14], [21, 22, 23, 9]]
    assert one.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert trained_pairs(one) == [(12, 13), (13, 14), (21, 22), (22, 23)]
    assert (one.tokens, one.trained_tokens) == (7, 4)


@pytest.mark.parametrize("made", [join([FIRST, SECOND]), pad([FIRST, SECOND], pad_token_id=9)])
def test_what_is_not_learned_is_only_read(made):
    one = made.untrained()

    assert one.inputs == made.inputs
    assert trained_pairs(one) == []
    assert (one.tokens, one.trained_tokens) == (0, 0)


def test_flash_attention_gets_the_starts_of_rows():
    one = join([FIRST, SECOND], flash=True)

    assert one.inputs["cu_seq_lens_q"].tolist() == [0, 4, 7]
    assert one.inputs["cu_seq_lens_q"].dtype == torch.int32
    assert one.inputs["max_length_k"] == 4
    assert "joined_rows" not in one.inputs


def test_labels_may_differ_from_the_tokens():
    """Not that they do today; but what is learned is what the labels say."""
    one = join([Row([1, 2, 3], [-100, 7, -100])])

    assert trained_pairs(one) == [(1, 7)]
