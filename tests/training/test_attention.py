"""Joined rows attend to themselves alone, with the values and gradients of PyTorch's own attention."""

import itertools

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from loratory.engine.config.rules import QUERY_TILE
from loratory.engine.training.ops import attention
from loratory.engine.training.ops.attention import (
    JoinedRows,
    SharedPrefix,
    UnsupportedAttentionError,
    copy_shared_heads,
    joined_attention,
    sdpa_with_copied_heads,
)

HEADS, KEY_VALUE_HEADS, SIZE = 6, 2, 16


class CausalModule(torch.nn.Module):
    is_causal = True


def random_inputs(lengths, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))

    def make(heads):
        return torch.randn(1, heads, sum(lengths), SIZE, generator=generator).to(dtype).requires_grad_()

    return make(HEADS), make(KEY_VALUE_HEADS), make(KEY_VALUE_HEADS)


def row_by_row(inputs, lengths, scale, window=None):
    """Attend by the definition: each row through PyTorch's attention by itself."""
    outputs = []
    for q, k, v in zip(*(part[0].split(lengths, dim=1) for part in inputs), strict=True):
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
    expected = row_by_row(again, lengths, 0.3, window)
    (joined * weights).sum().backward()
    (expected * weights).sum().backward()

    assert probabilities is None
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-5)
    for got, target in zip(inputs, again, strict=True):
        torch.testing.assert_close(got.grad, target.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3, QUERY_TILE + 7])
@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["in tiles", "by PyTorch's kernel"])
@pytest.mark.parametrize(("shared", "first", "second"), [(4, 9, 7), (5, 5, 8), (6, 9, 6), (90, 2 * QUERY_TILE, 140)])
def test_two_sequences_that_share_their_beginning_see_what_whole_ones_do(shared, first, second, dropout, window):
    inputs = random_inputs((first, second, 3))
    again = tuple(part.detach().clone().requires_grad_() for part in inputs)
    rest, after = slice(first + shared, first + second), slice(first + second, None)

    def without_repetition(states):
        return torch.cat([states[:, :, :first], states[:, :, rest], states[:, :, after]], dim=2)

    def with_repetition(states):
        parts = (states[:, :, :first], states[:, :, :shared], states[:, :, rest], states[:, :, after])
        return torch.cat(parts, dim=2)

    rows = JoinedRows((first + second - shared, 3), (SharedPrefix(shared, (first,)),))
    query, key, value = map(without_repetition, inputs)
    shared_output, _ = joined_attention(
        CausalModule(), query, key, value, None, dropout=dropout, scaling=0.3, sliding_window=window,
        joined_rows=rows,
    )  # fmt: skip
    whole = row_by_row(tuple(map(with_repetition, again)), (first, second, 3), 0.3, window).transpose(1, 2)
    expected = without_repetition(whole).transpose(1, 2)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (shared_output * weights).sum().backward()
    (expected * weights).sum().backward()

    torch.testing.assert_close(shared_output, expected, rtol=1e-4, atol=1e-5)
    for got, target in zip(inputs, again, strict=True):
        torch.testing.assert_close(got.grad, target.grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_exact_as_the_fused_kernel():
    lengths = (70, 200)
    inputs = random_inputs(lengths, torch.bfloat16)
    exact = row_by_row([part.double() for part in inputs], lengths, 0.25)

    joined, _ = joined_attention(CausalModule(), *inputs, None, scaling=0.25, joined_rows=JoinedRows(lengths))

    error = (joined.double() - exact).norm() / exact.norm()
    assert error < 0.005  # half a unit in the last place of bfloat16 is 0.002


def test_attention_dropout_is_left_to_the_fused_kernel():
    inputs = random_inputs((40,))
    torch.manual_seed(0)

    with_dropout, _ = joined_attention(CausalModule(), *inputs, None, dropout=0.5, joined_rows=JoinedRows((40,)))
    whole, _ = joined_attention(CausalModule(), *inputs, None, joined_rows=JoinedRows((40,)))

    assert not torch.allclose(with_dropout, whole)


@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 50.0},
        {"s_aux": torch.zeros(HEADS)},
        {"is_causal": False},
        {"joined_rows": None},
        {"attention_mask": torch.ones(1, 1, 8, 8, dtype=torch.bool)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_it_cannot_do_is_refused(options):
    arguments = {"joined_rows": JoinedRows((8,)), "attention_mask": None, **options}

    with pytest.raises(UnsupportedAttentionError):
        joined_attention(CausalModule(), *random_inputs((8,)), **arguments)


class SharingModule(CausalModule):
    num_key_value_groups = HEADS // KEY_VALUE_HEADS


@pytest.fixture
def heads_given(monkeypatch):
    """Query heads and key-value heads of each call of PyTorch's attention, and whether they are shared."""
    calls = []
    own = functional.scaled_dot_product_attention

    def attend(query, key, value, **options):
        calls.append((query.shape[-3], key.shape[-3], options.get("enable_gqa", False)))
        return own(query, key, value, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    return calls


@pytest.mark.parametrize("tokens", [1, 9])
def test_copied_heads_attend_as_shared_ones_do(heads_given, tokens):
    query, key, value = random_inputs((9,))
    query = query[:, :, -tokens:]

    expected, _ = sdpa_attention_forward(SharingModule(), query, key, value, None, scaling=0.3)
    got, _ = sdpa_with_copied_heads(SharingModule(), query, key, value, None, scaling=0.3)

    assert heads_given[0] == (HEADS, KEY_VALUE_HEADS, True)
    # One token needs no copy of the cache: its queries become rows of the heads that they share.
    assert heads_given[1] == ((KEY_VALUE_HEADS, KEY_VALUE_HEADS, False) if tokens == 1 else (HEADS, HEADS, False))
    torch.testing.assert_close(got, expected)


def test_a_mask_is_left_to_transformers():
    query, key, value = random_inputs((9,))
    mask = torch.ones(1, 1, 9, 9, dtype=torch.bool).tril()

    expected, _ = sdpa_attention_forward(SharingModule(), query, key, value, mask)
    got, _ = sdpa_with_copied_heads(SharingModule(), query, key, value, mask)

    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("capability", "dtype", "copies_heads"),
    [
        ((7, 5), torch.float16, True),
        ((8, 6), torch.float32, True),
        ((8, 6), torch.bfloat16, False),
        ((9, 0), torch.float16, False),
    ],
)
def test_heads_are_copied_where_no_flash_kernel_takes_them_shared(monkeypatch, capability, dtype, copies_heads):
    monkeypatch.setattr(AttentionInterface, "_global_mapping", dict(AttentionInterface._global_mapping))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)

    copy_shared_heads(dtype, (0,))

    assert AttentionInterface()["sdpa"] is (sdpa_with_copied_heads if copies_heads else sdpa_attention_forward)
    copy_shared_heads(torch.float32, ())  # a model on the processor, afterwards
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward


def test_a_whole_model_answers_the_same_with_copied_heads(monkeypatch, tiny_model_folder, heads_given):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, attn_implementation="sdpa").eval()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    ids = torch.arange(10, 30)[None]
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert any(shared for *_, shared in heads_given)
    heads_given.clear()

    monkeypatch.setattr(
        AttentionInterface, "_global_mapping", AttentionInterface._global_mapping | {"sdpa": sdpa_with_copied_heads}
    )
    got = model.generate(ids, max_new_tokens=8, do_sample=False)

    assert torch.equal(got, expected)
    assert heads_given
    assert not any(shared for *_, shared in heads_given)


@pytest.mark.parametrize("window", [None, 7])
def test_joined_rows_copy_heads_where_no_flash_kernel_takes_them(monkeypatch, heads_given, window):
    inputs = random_inputs((15, 25))
    settings = {"sliding_window": window, "joined_rows": JoinedRows((15, 25))}
    expected, _ = joined_attention(CausalModule(), *inputs, None, **settings)
    monkeypatch.setattr(attention, "_attend_tiled", attention._attend_fused)
    monkeypatch.setattr(attention, "_takes_shared_heads", lambda *_, **__: False)

    got, _ = joined_attention(CausalModule(), *inputs, None, **settings)

    assert heads_given == [(HEADS, HEADS, False)] * 2
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["in tiles", "by PyTorch's kernel"])
def test_several_sequences_that_share_their_beginning_see_what_whole_ones_do(dropout, window):
    # The third has nothing of its own; those of nearly one length are computed together.
    shared, lengths = 6, (9, 8, 6, QUERY_TILE + 3, 13, 8, 30, QUERY_TILE + 1)
    inputs = random_inputs(lengths)
    starts = [0, *itertools.accumulate(lengths)]
    parts = [
        range(starts[0], starts[1]),
        *(range(s + shared, s + n) for s, n in zip(starts[1:], lengths[1:], strict=False)),
    ]
    chosen = torch.tensor([index for part in parts for index in part])
    row_starts = tuple(itertools.accumulate(map(len, parts[:-1])))

    # Whole sequences that begin like the first.
    again = [states.detach().clone() for states in inputs]
    for states in again:
        for start in starts[1:-1]:
            states[:, :, start : start + shared] = states[:, :, :shared]
        states.requires_grad_()
    whole = row_by_row(again, lengths, 0.3, window)
    rows = JoinedRows((len(chosen),), (SharedPrefix(shared, row_starts),))
    query, key, value = (states[:, :, chosen] for states in inputs)
    got, _ = joined_attention(
        CausalModule(), query, key, value, None, dropout=dropout, scaling=0.3,
        sliding_window=window, joined_rows=rows,
    )  # fmt: skip

    torch.testing.assert_close(got, whole[:, chosen], rtol=1e-4, atol=1e-5)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    (got * weights).sum().backward()
    (whole[:, chosen] * weights).sum().backward()
    for states, copies in zip(inputs, again, strict=True):
        for start in starts[1:-1]:
            copies.grad[:, :, :shared] += copies.grad[:, :, start : start + shared]
        torch.testing.assert_close(states.grad[:, :, chosen], copies.grad[:, :, chosen], rtol=1e-4, atol=1e-5)
