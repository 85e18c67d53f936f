"""Joined rows attend to themselves alone, with the values and gradients of PyTorch's own attention."""

import pytest
import torch
from torch.nn import functional

from engine.training.attention import QUERY_TILE, JoinedRows, UnsupportedAttentionError, joined_attention

HEADS, KEY_VALUE_HEADS, SIZE = 6, 2, 16


class CausalModule(torch.nn.Module):
    is_causal = True


def random_inputs(lengths, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(lengths))

    def make(heads):
        return torch.randn(1, heads, sum(lengths), SIZE, generator=generator).to(dtype).requires_grad_()

    return make(HEADS), make(KEY_VALUE_HEADS), make(KEY_VALUE_HEADS)


def row_by_row(query, key, value, lengths, scale, window=None):
    """The definition: each row through PyTorch's attention by itself."""
    outputs = []
    for q, k, v in zip(*(part[0].split(lengths, dim=1) for part in (query, key, value)), strict=True):
        length = q.shape[1]
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        allowed = (distance >= 0) & (distance < (window or length))
        group = HEADS // KEY_VALUE_HEADS
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        outputs.append(functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale))
    return torch.cat(outputs, dim=1).transpose(0, 1).unsqueeze(0)


@pytest.mark.parametrize("window", [None, 3, QUERY_TILE, QUERY_TILE + 7])
@pytest.mark.parametrize("lengths", [(5,), (1, 9, 4), (QUERY_TILE, 3), (2 * QUERY_TILE + 5, 40, QUERY_TILE + 1)])
def test_values_and_gradients_are_those_of_separate_rows(lengths, window):
    inputs = random_inputs(lengths)
    again = tuple(part.detach().clone().requires_grad_() for part in inputs)
    weights = torch.randn(1, sum(lengths), HEADS, SIZE, generator=torch.Generator().manual_seed(1))

    joined, probabilities = joined_attention(
        CausalModule(), *inputs, None, scaling=0.3, sliding_window=window, joined_rows=JoinedRows(lengths)
    )
    expected = row_by_row(*again, lengths, 0.3, window)
    (joined * weights).sum().backward()
    (expected * weights).sum().backward()

    assert probabilities is None
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(inputs, again, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_exact_as_the_fused_kernel():
    lengths = (70, 200)
    inputs = random_inputs(lengths, torch.bfloat16)
    exact = row_by_row(*(part.double() for part in inputs), lengths, 0.25)

    joined, _ = joined_attention(CausalModule(), *inputs, None, scaling=0.25, joined_rows=JoinedRows(lengths))

    error = (joined.double() - exact).norm() / exact.norm()
    assert error < 0.005  # half a unit in the last place of bfloat16 is 0.002


def test_a_row_is_the_same_whatever_stands_beside_it():
    lengths = (30, 50)
    query, key, value = random_inputs(lengths)
    alone, _ = joined_attention(
        CausalModule(), query[:, :, 30:], key[:, :, 30:], value[:, :, 30:], None, joined_rows=JoinedRows((50,))
    )

    joined, _ = joined_attention(CausalModule(), query, key, value, None, joined_rows=JoinedRows(lengths))

    assert torch.equal(joined[:, 30:], alone)


def test_attention_dropout_is_left_to_the_fused_kernel():
    inputs = random_inputs((40,))
    torch.manual_seed(0)

    dropped, _ = joined_attention(CausalModule(), *inputs, None, dropout=0.5, joined_rows=JoinedRows((40,)))
    whole, _ = joined_attention(CausalModule(), *inputs, None, joined_rows=JoinedRows((40,)))

    assert not torch.allclose(dropped, whole)


@pytest.mark.parametrize(
    "asked",
    [{"softcap": 50.0}, {"s_aux": torch.zeros(HEADS)}, {"is_causal": False}, {"joined_rows": None}],
    ids=lambda asked: next(iter(asked)),
)
def test_what_it_cannot_do_is_refused(asked):
    arguments = {"joined_rows": JoinedRows((8,)), **asked}

    with pytest.raises(UnsupportedAttentionError):
        joined_attention(CausalModule(), *random_inputs((8,)), None, **arguments)


def test_a_mask_is_refused_rather_than_overlooked():
    with pytest.raises(UnsupportedAttentionError):
        joined_attention(
            CausalModule(), *random_inputs((8,)), torch.ones(1, 1, 8, 8, dtype=torch.bool), joined_rows=JoinedRows((8,))
        )
