"""Attention without a mask: joined rows in one kernel and padded rows give what row by row gives, in every family."""

import inspect
from typing import Any

import pytest
import torch

from loratory.engine.config.optimizations import LEFT_OUT, VARIABLE
from loratory.engine.hardware.device import Device
from loratory.engine.models import batching
from loratory.engine.models.batching import AttentionFacts, needs_mask, takes_varlen_attention
from loratory.engine.models.shape import AttentionSupport
from loratory.engine.training.ops import gpu_attention
from loratory.engine.training.ops.attention import JoinedRows, UnsupportedAttentionError, joined_attention
from loratory.engine.training.ops.gpu_attention import (
    find_varlen_attn,
    unmasked_attention,
    varlen_attention,
)
from tests.tiny_model import make_tiny_model
from tests.training.gpu_stand_ins import use_gpu_paths, varlen_attn
from tests.training.tiny_training import make_config, make_rows, train_tiny

LENGTHS = (5, 1, 40, 18)
WINDOW = 16
GEMMA: dict[str, Any] = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_hidden_layers": 3,
}
FAMILIES: dict[str, Any] = {
    "llama": {},
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "mistral": {"sliding_window": WINDOW},
    "gemma3_text": GEMMA | {"sliding_window": WINDOW},
}
AMPERE = Device("cuda", 0, "a GPU", 80 << 30, 80 << 30, has_fast_bfloat16=True)


def states(dtype=torch.float32, heads=6, shared=2, tokens=64, rows=1) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    query = torch.randn(rows, heads, tokens, 8).to(dtype).requires_grad_()
    key, value = (torch.randn(rows, shared, tokens, 8).to(dtype).requires_grad_() for _ in range(2))
    return query, key, value


def gradients(output, parts):
    torch.manual_seed(1)
    return torch.autograd.grad((output * torch.randn(output.shape)).sum(), parts)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(gpu_attention, "find_varlen_attn", lambda: varlen_attn)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("shared", [2, 6], ids=["shared heads", "own heads"])
@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_rows_attend_as_row_by_row(dtype, window, shared):
    parts = states(dtype, shared=shared)
    ends = torch.tensor((0, *LENGTHS)).cumsum(0).to(torch.int32)
    module, value = torch.nn.Module(), {"sliding_window": window, "scaling": 0.3}
    expected, _ = joined_attention(module, *parts, None, joined_rows=JoinedRows(LENGTHS), **value)

    got, _ = varlen_attention(module, *parts, None, cu_seq_lens_q=ends, max_length_q=max(LENGTHS), **value)

    tolerance = 1e-5 if dtype is torch.float32 else 0.02
    assert got.shape == expected.shape
    pairs = zip((got, *gradients(got, parts)), (expected, *gradients(expected, parts)), strict=True)
    for own, reference in pairs:
        assert (own - reference).norm() <= tolerance * reference.norm() + 1e-5


def test_the_stand_in_takes_what_pytorchs_kernel_takes():
    real = find_varlen_attn()
    if real is None:
        pytest.skip("this PyTorch has no such kernel")

    assert inspect.signature(real).parameters.keys() >= inspect.signature(varlen_attn).parameters.keys()


@pytest.mark.parametrize("window", [None, 7])
def test_padded_rows_attend_as_each_by_itself(window):
    parts = states(rows=3, tokens=20)
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    got, _ = unmasked_attention(module, *parts, None, sliding_window=window)

    for row, length in enumerate((20, 3, 11)):
        query, key, value = (part[row : row + 1, :, :length] for part in parts)
        settings = {"joined_rows": JoinedRows((length,)), "sliding_window": window}
        expected, _ = joined_attention(module, query, key, value, None, **settings)
        torch.testing.assert_close(got[row, :length], expected[0])


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("options", [{"softcap": 30.0}, {"s_aux": 1}, {"is_causal": False}, {"cu_seq_lens_q": None}])
def test_what_the_kernel_does_not_do_is_refused(options):
    ends = torch.tensor((0, *LENGTHS)).cumsum(0).to(torch.int32)
    with pytest.raises(UnsupportedAttentionError):
        varlen_attention(torch.nn.Module(), *states(), None, **{"cu_seq_lens_q": ends, "max_length_q": 40} | options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family: make_tiny_model(root / family, model_type=family, **values) for family, values in FAMILIES.items()}


def train(folder, out, **adapter):
    config = make_config(folder, adapter=adapter, training={"max_steps": 4})
    training = train_tiny(config, make_rows(24), out, held_out=make_rows(4, seed=1))
    return training, training.trainer.measure_held_out().eval_loss


@pytest.mark.exhaustive
@pytest.mark.parametrize("joins", [True, False], ids=["joined", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_without_a_mask_has_the_same_losses(family, joins, folders, tmp_path, monkeypatch):
    if not joins:
        monkeypatch.setattr("loratory.engine.training.batching.choose.choose_batching", lambda *_, **__: "padded")
    monkeypatch.setenv(VARIABLE, "unmasked_rows,varlen_attention,fused_loss")
    before, measured_before = train(folders[family], tmp_path / "before")
    monkeypatch.delenv(VARIABLE)
    use_gpu_paths(monkeypatch, joins=joins)

    after, measurement = train(folders[family], tmp_path / "after")

    used = after.assembly.optimizations
    assert before.assembly.optimizations["unmasked_rows"] in (LEFT_OUT, "rows are joined")
    assert before.assembly.setup.masked is not joins
    assert not used["varlen_attention" if joins else "unmasked_rows"]
    assert not after.assembly.setup.masked
    assert after.assembly.setup.flash is joins
    assert after.assembly.attention == ("varlen_attn" if joins else "sdpa, without a mask")
    assert after.losses == pytest.approx(before.losses, rel=1e-4)
    assert measurement == pytest.approx(measured_before, rel=1e-4)


def test_a_kernel_that_forgets_the_window_is_not_used(folders, tmp_path, monkeypatch):
    use_gpu_paths(monkeypatch)
    monkeypatch.setattr(
        gpu_attention, "find_varlen_attn", lambda: lambda *g, **k: varlen_attn(*g, **k | {"window_size": (-1, 0)})
    )

    training, _ = train(folders["mistral"], tmp_path)

    assert training.assembly.attention == "sdpa, row by row"
    assert training.assembly.optimizations["varlen_attention"] == "the model's losses or attention differ"


def test_virtual_tokens_keep_the_mask(folders, tmp_path, monkeypatch):
    use_gpu_paths(monkeypatch, joins=False)

    training, _ = train(folders["llama"], tmp_path, method="prefix_tuning", num_virtual_tokens=4)

    assert training.assembly.setup.masked
    assert "virtual tokens" in training.assembly.optimizations["unmasked_rows"]


@pytest.mark.parametrize(
    ("facts", "attention", "expected"),
    [
        (AttentionFacts("llama", (), None, AttentionSupport()), "sdpa", False),
        (AttentionFacts("llama", (), None, AttentionSupport()), "eager", True),
        (AttentionFacts("mistral", (), 16, AttentionSupport()), "sdpa", False),
        (AttentionFacts("qwen2_moe", (), 16, AttentionSupport()), "sdpa", True),
        (AttentionFacts("jamba", ("linear_attention", "full_attention"), None, AttentionSupport()), "sdpa", True),
        (AttentionFacts("lfm2", ("conv", "full_attention"), None, AttentionSupport()), "sdpa", True),
        (AttentionFacts("bert", (), None, AttentionSupport(is_causal=False)), "sdpa", True),
    ],
)
def test_a_mask_is_kept_where_the_model_needs_it(facts, attention, expected, tmp_path):
    assert needs_mask(facts, attention, make_config(tmp_path)) is expected


def test_the_kernel_is_expected_where_it_runs(tmp_path, monkeypatch):
    facts = AttentionFacts("llama", (), None, AttentionSupport())
    config = make_config(tmp_path, model={"compute_dtype": "auto"})
    monkeypatch.setattr(batching, "library_version", lambda _name: "2.13.0+cu130")
    expects = takes_varlen_attention

    assert expects(facts, "sdpa", config, AMPERE)
    assert not expects(facts, "eager", config, AMPERE)
    assert not expects(facts, "sdpa", make_config(tmp_path, model={"compute_dtype": "float32"}), AMPERE)
    assert not expects(AttentionFacts("x", (), None, AttentionSupport(), head_dim=320), "sdpa", config, AMPERE)
    assert not expects(AttentionFacts("x", (), None, AttentionSupport(), attention_dropout=0.1), "sdpa", config, AMPERE)
    monkeypatch.setattr(batching, "library_version", lambda _name: "2.9.1")
    assert not expects(facts, "sdpa", config, AMPERE)
