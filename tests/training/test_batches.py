"""What a pass trains: at each position the token that follows it in its own row."""

import pytest
import torch

from loratory.engine.config.rules import JOINED_MULTIPLE
from loratory.engine.training.batching.batches import join, join_shared, pad
from loratory.engine.training.ops.attention import SharedPrefix
from tests.training.tiny_training import Row

FIRST = Row([11, 12, 13, 14], [-100, -100, 13, 14])
SECOND = Row([21, 22, 23], [21, 22, 23])  # even its first token is marked, but nothing stands before it


def trained_pairs(batch) -> list[tuple[int, int]]:
    """Return pairs of the token at a position and the token that is trained there."""
    flat = batch.inputs["input_ids"].flatten()
    return [(int(flat[p]), int(t)) for p, t in zip(batch.trained.positions, batch.trained.targets, strict=True)]


def test_joined_rows_are_trained_within_themselves():
    batch = join([FIRST, SECOND])

    assert batch.inputs["input_ids"][0, :7].tolist() == [11, 12, 13, 14, 21, 22, 23]
    assert batch.inputs["position_ids"][0, :7].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.inputs["joined_rows"].lengths[:2] == (4, 3)
    assert trained_pairs(batch) == [(12, 13), (13, 14), (21, 22), (22, 23)]
    assert (batch.tokens, batch.trained_tokens) == (7, 4)


def test_joined_tokens_are_filled_up_with_a_row_of_their_own():
    batch = join([FIRST, SECOND])

    assert batch.inputs["input_ids"].shape == (1, JOINED_MULTIPLE)
    assert batch.inputs["joined_rows"].lengths == (4, 3, JOINED_MULTIPLE - 7)
    assert batch.inputs["position_ids"][0, 7:].tolist() == list(range(JOINED_MULTIPLE - 7))


def test_the_beginning_that_two_answers_share_is_there_once():
    other = Row([11, 12, 13, 15, 16], [-100, -100, 13, 15, 16])  # begins like FIRST with a trained token

    batch = join_shared([(FIRST, other), (SECOND, SECOND)])

    assert batch.inputs["input_ids"][0, :9].tolist() == [11, 12, 13, 14, 15, 16, 21, 22, 23]
    assert batch.inputs["position_ids"][0, :9].tolist() == [0, 1, 2, 3, 3, 4, 0, 1, 2]
    rows = batch.inputs["joined_rows"]
    assert (rows.lengths, rows.prefixes) == (
        (6, 3, JOINED_MULTIPLE - 9),
        (SharedPrefix(3, (4,)), SharedPrefix(3, (3,))),
    )
    assert trained_pairs(batch) == [
        (12, 13), (13, 14), (12, 13), (13, 15), (15, 16), (21, 22), (22, 23), (21, 22), (22, 23),
    ]  # fmt: skip
    assert batch.sequence_of.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert (batch.tokens, batch.sequences, batch.sequence_tokens) == (15, 4, (2, 3, 2, 2))


def test_padded_rows_train_the_same_tokens():
    batch = pad([FIRST, SECOND], pad_token_id=9)

    assert batch.inputs["input_ids"].tolist() == [[11, 12, 13, 14], [21, 22, 23, 9]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert trained_pairs(batch) == [(12, 13), (13, 14), (21, 22), (22, 23)]
    assert (batch.tokens, batch.trained_tokens) == (7, 4)


@pytest.mark.parametrize("batch", [join([FIRST, SECOND]), pad([FIRST, SECOND], pad_token_id=9)])
def test_an_untrained_pass_is_context_alone(batch):
    context = batch.untrained()

    assert context.inputs == batch.inputs
    assert trained_pairs(context) == []
    assert (context.tokens, context.trained_tokens) == (0, 0)


def test_flash_attention_gets_the_starts_of_rows():
    batch = join([FIRST, SECOND], flash=True)

    assert batch.inputs["cu_seq_lens_q"].tolist() == [0, 4, 7]
    assert batch.inputs["cu_seq_lens_q"].dtype == torch.int32
    assert batch.inputs["max_length_k"] == 4
    assert "joined_rows" not in batch.inputs


@pytest.mark.parametrize("makes", [lambda rows: pad(rows, 0), join, lambda rows: join(rows, flash=True)])
def test_every_tensor_of_a_pass_is_pinned_and_copied_without_waiting(monkeypatch, makes):
    batch = makes([FIRST, SECOND])
    pinned, copies = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking=False: copies.append(non_blocking) or self
    )

    again = batch.to(torch.device("cuda", 0))

    tensors = [*(value for value in batch.inputs.values() if isinstance(value, torch.Tensor)), *batch.trained]
    tensors.append(batch.sequence_of)
    assert [id(tensor) for tensor in pinned] == [id(tensor) for tensor in tensors]
    assert again.tokens == batch.tokens
    assert copies == [True] * len(tensors)
    copies.clear()
    batch.to(torch.device("mps"))  # whose copies are not ordered with what the processor does to their source
    assert copies == [False] * len(tensors)
