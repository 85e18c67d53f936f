"""Which attention kernel is taken on CUDA, and that each gives the losses of a CPU in float32."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from loratory.engine.memory.workload import has_flash_attention
from loratory.engine.training.batching.batches import pad
from loratory.engine.training.ops.attention import JoinedRows, joined_attention, sdpa_with_copied_heads
from loratory.engine.training.ops.gpu_attention import find_varlen_attn, varlen_attention
from tests.gpu.cuda_training import ROWS, auto_dtype, train_on_gpu
from tests.tiny_model import make_tiny_model
from tests.training.tiny_training import make_config, make_rows, train_tiny

pytestmark = pytest.mark.gpu

HAS_FLASH = has_flash_attention()
BFLOAT16_TOLERANCE = 0.02  # of the tiny model's losses, against float32


def train(folder, tmp_path, **sections):
    return train_on_gpu(folder, tmp_path / "out", **sections)


@pytest.fixture
def on_the_processor(tiny_model_folder, tmp_path):
    training = train_tiny(make_config(tiny_model_folder), ROWS, tmp_path / "processor")
    return training.losses


def test_auto_takes_flash_attention_where_it_is_installed_else_sdpa(tiny_model_folder, tmp_path):
    training = train(tiny_model_folder, tmp_path, **auto_dtype())

    is_flash_gpu = torch.cuda.get_device_capability(0) >= (8, 0)
    otherwise = "varlen_attn" if is_flash_gpu and find_varlen_attn() is not None else "sdpa, without a mask"
    assert training.assembly.attention == ("flash_attention_2" if HAS_FLASH and is_flash_gpu else otherwise)


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_sdpa_in_float32_has_the_losses_of_the_processor(packing, tiny_model_folder, tmp_path, on_the_processor):
    sections = {"model": {"attn_implementation": "sdpa"}, "training": {"packing": packing}}
    training = train(tiny_model_folder, tmp_path, **sections)

    assert training.assembly.setup.settings.batching == ("joined" if packing else "padded")
    if packing:
        assert len(training.losses) < len(on_the_processor)
        assert training.losses[0] == pytest.approx(on_the_processor[0], rel=0.05)
    else:
        assert training.losses == pytest.approx(on_the_processor, rel=1e-3)


@pytest.mark.skipif(not HAS_FLASH, reason="FlashAttention 2 is not installed")
def test_flash_attention_joins_rows_and_has_the_losses_of_the_processor(tiny_model_folder, tmp_path, on_the_processor):
    training = train(tiny_model_folder, tmp_path, **auto_dtype(model={"attn_implementation": "flash_attention_2"}))

    assert training.assembly.setup.settings.batching == "joined"
    assert training.assembly.setup.flash
    assert training.losses == pytest.approx(on_the_processor, rel=BFLOAT16_TOLERANCE)


def test_float16_scales_its_loss_and_learns(tiny_model_folder, tmp_path):
    training = train(tiny_model_folder, tmp_path, model={"compute_dtype": "float16"})

    scaler = training.trainer.accelerator.scaler
    assert scaler is not None
    assert scaler.get_scale() > 1
    assert all(loss == loss for loss in training.losses)  # none is NaN
    assert {p.dtype for p in training.trainer.model.parameters() if p.requires_grad} == {torch.float32}


LONG_ROWS = make_rows(24, longest=200)  # longer than the window and than a tile of queries
SIX_STEPS = {"max_length": 256, "max_steps": 6}


@pytest.fixture(params=[None, 32], ids=["whole rows", "a sliding window"])
def windowed_folder(request, tmp_path):
    return make_tiny_model(tmp_path / "model", model_type="mistral", sliding_window=request.param)


def test_packed_rows_have_the_losses_of_the_processor(windowed_folder, tmp_path):
    sections: dict[str, dict[str, object]] = {"training": {"packing": True, **SIX_STEPS}}
    on_the_processor = train_tiny(make_config(windowed_folder, **sections), LONG_ROWS, tmp_path / "processor")

    sections["model"] = {"attn_implementation": "sdpa"}
    training = train_on_gpu(windowed_folder, tmp_path / "out", LONG_ROWS, **sections)

    assert training.assembly.setup.settings.batching == "joined"
    assert training.assembly.notes == ()
    assert training.losses == pytest.approx(on_the_processor.losses, rel=1e-3)


def test_heads_that_share_keys_never_have_their_scores_written_out_in_float32(cuda, show):
    """14 query heads on 2 key-value heads and 2,048 tokens: all scores in float32 take 235 MB."""
    heads, shared, tokens, size = 14, 2, 2048, 64
    scores_bytes = heads * tokens * tokens * 4
    query = torch.randn(1, heads, tokens, size, device=cuda, requires_grad=True)
    key, value = (torch.randn(1, shared, tokens, size, device=cuda, requires_grad=True) for _ in range(2))
    module = torch.nn.Module()
    module.num_key_value_groups = heads // shared

    def attend(function):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        output, _ = function(module, query, key, value, None)
        gradients = torch.autograd.grad(output.square().sum(), (query, key, value))
        torch.cuda.synchronize()
        return output, gradients, torch.cuda.max_memory_allocated() - before

    expected, expected_gradients, theirs = attend(sdpa_attention_forward)
    got, gradients, ours = attend(sdpa_with_copied_heads)

    show(ours_bytes=ours, transformers_bytes=theirs, scores_bytes=scores_bytes)
    assert ours < scores_bytes
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    for own, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-2)


needs_ampere = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability(0) < (8, 0), reason="needs a GPU since Ampere"
)


@needs_ampere
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(14, 2, 64), (32, 8, 128), (8, 8, 256)], ids=str)
def test_pytorchs_kernel_for_joined_rows_gives_what_row_by_row_gives(cuda, dtype, heads):
    if find_varlen_attn() is None:
        pytest.skip("this PyTorch has no such kernel")

    queries, shared, size = heads
    lengths, module = (5, 1, 40, 18), torch.nn.Module()
    ends = torch.tensor((0, *lengths), device=cuda).cumsum(0).to(torch.int32)
    query, key, value = parts = [
        torch.randn(1, count, sum(lengths), size, device=cuda, dtype=dtype, requires_grad=True)
        for count in (queries, shared, shared)
    ]
    rows, _ = joined_attention(module, query, key, value, None, sliding_window=8, joined_rows=JoinedRows(lengths))
    once, _ = varlen_attention(module, query, key, value, None, sliding_window=8, cu_seq_lens_q=ends, max_length_q=40)

    weights = torch.randn_like(rows)
    expected = (rows, *torch.autograd.grad((rows * weights).sum(), parts))
    for own, row in zip((once, *torch.autograd.grad((once * weights).sum(), parts)), expected, strict=True):
        assert (own.float() - row.float()).norm() <= 0.03 * row.float().norm()


@needs_ampere
def test_rows_are_joined_without_the_flash_attention_package(windowed_folder, tmp_path, show):
    if HAS_FLASH or find_varlen_attn() is None:
        pytest.skip("another kernel is taken")
    config = make_config(windowed_folder, training=SIX_STEPS)
    on_the_processor = train_tiny(config, LONG_ROWS, tmp_path / "processor")

    training = train_on_gpu(windowed_folder, tmp_path / "out", LONG_ROWS, **auto_dtype(training=SIX_STEPS))

    show(optimizations=training.assembly.optimizations)
    assert training.assembly.attention == "varlen_attn"
    assert training.losses == pytest.approx(on_the_processor.losses, rel=BFLOAT16_TOLERANCE)


def test_padded_rows_without_a_mask_have_the_losses_of_rows_with_one(windowed_folder, tmp_path, monkeypatch, show):
    monkeypatch.setenv("LORATORY_WITHOUT", "unmasked_rows,varlen_attention")
    masked = train_on_gpu(windowed_folder, tmp_path / "masked", LONG_ROWS, training=SIX_STEPS)
    monkeypatch.setenv("LORATORY_WITHOUT", "varlen_attention")

    training = train_on_gpu(windowed_folder, tmp_path / "out", LONG_ROWS, training=SIX_STEPS)

    show(optimizations=training.assembly.optimizations)
    assert masked.assembly.setup.masked
    assert not training.assembly.setup.masked
    assert training.losses == pytest.approx(masked.losses, rel=1e-3)


def test_a_pass_without_a_mask_never_waits_for_the_gpu(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LORATORY_WITHOUT", "varlen_attention")
    training = train_on_gpu(tiny_model_folder, tmp_path / "out", training={"max_steps": 1})
    batch = pad(ROWS[:3], 0, masked=False).to(torch.device("cuda", 0))
    model = training.trainer.model
    model(**batch.inputs, trained_tokens=batch.trained)  # kernels are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = model(**batch.inputs, trained_tokens=batch.trained)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert loss > 0
