"""Kernels of others on a real GPU: compiled layers and Liger's have the losses of the model's own."""

import importlib.util

import pytest

from tests.gpu.cuda_training import auto_dtype, train_on_gpu
from tests.tiny_model import make_tiny_model
from tests.training.worker_runs import data_of_events, newest_intact

pytestmark = pytest.mark.gpu

TOLERANCE = 0.02  # of the losses in bfloat16


def train(folder, tmp_path, **training):
    return train_on_gpu(
        folder, tmp_path / "-".join(training) / "out", **auto_dtype(training={"max_steps": 6, **training})
    )


def test_compiled_layers_have_the_losses_of_the_models_own(tiny_model_folder, tmp_path):
    pytest.importorskip("triton")

    own, other = train(tiny_model_folder, tmp_path), train(tiny_model_folder, tmp_path, torch_compile=True)

    assert other.assembly.notes == ()  # which would say that they were given up
    assert other.losses == pytest.approx(own.losses, rel=TOLERANCE)


@pytest.mark.parametrize("method", ["lora", "ia3", "none"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("name", ["liger_kernels", "fused_norms"])
def test_kernels_of_layers_have_the_losses_of_the_models_own(name, family, method, tmp_path, monkeypatch, show):
    if name == "liger_kernels" and importlib.util.find_spec("liger_kernel") is None:
        pytest.skip("liger-kernel is not installed")
    folder = make_tiny_model(tmp_path / "model", model_type=family)
    sections = auto_dtype(adapter={"method": method}, training={"max_steps": 6})
    monkeypatch.setenv("LORATORY_WITHOUT", "liger_kernels,fused_norms")
    own = train_on_gpu(folder, tmp_path / "own", **sections)
    monkeypatch.setenv("LORATORY_WITHOUT", "fused_norms" if name == "liger_kernels" else "liger_kernels")

    other = train_on_gpu(folder, tmp_path / "other", **sections)

    show(optimizations=other.assembly.optimizations)
    is_used = not (name == "fused_norms" and family == "gemma3_text")  # which adds one to its weights
    assert (other.assembly.optimizations[name] == "") is is_used
    assert other.losses == pytest.approx(own.losses, rel=TOLERANCE)


@pytest.mark.e2e
def test_a_float16_run_continues_with_the_scale_of_its_loss(resumed_run):
    _, run, _ = resumed_run(model={"compute_dtype": "float16"}, run={"devices": "auto"})

    assert (newest_intact(run.folder.checkpoints).folder / "scaler.json").is_file()
    assert data_of_events(run, "parameters")[-1].compute_dtype == "float16"
