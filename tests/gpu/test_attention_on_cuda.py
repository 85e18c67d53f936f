"""Which attention kernel is taken on CUDA, and that each gives the losses of a CPU in float32."""

import importlib.util

import pytest
import torch

from tests.gpu.cuda_training import auto_dtype, cuda_placement
from tests.training.tiny_training import make_config, make_rows, make_training

pytestmark = pytest.mark.gpu

ROWS = make_rows(24)
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None
BFLOAT16_TOLERANCE = 0.02  # of the tiny model's losses, against float32


def train(folder, tmp_path, **sections):
    training = make_training(make_config(folder, **sections), ROWS, tmp_path / "out", placement=cuda_placement())
    training.trainer.train()
    return training


@pytest.fixture
def on_the_processor(tiny_model_folder, tmp_path):
    training = make_training(make_config(tiny_model_folder), ROWS, tmp_path / "processor")
    training.trainer.train()
    return training.losses


def test_auto_takes_flash_attention_where_it_is_installed_else_sdpa(tiny_model_folder, tmp_path):
    training = train(tiny_model_folder, tmp_path, **auto_dtype())

    assert training.assembly.attention == ("flash_attention_2" if HAS_FLASH else "sdpa")
    assert training.trainer.model.config._attn_implementation == training.assembly.attention


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


@pytest.mark.skipif(not HAS_FLASH, reason="flash_attn is not installed")
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
