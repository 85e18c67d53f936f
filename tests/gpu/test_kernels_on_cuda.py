"""Kernels of others on a real GPU: compiled layers and Liger's have the losses of the model's own."""

import importlib.util

import pytest

from engine.training.worker import EXIT_FINISHED
from tests.checkpoints import newest_intact
from tests.gpu.cuda_training import auto_dtype, train_on_gpu
from tests.training.worker_runs import losses_of, said

pytestmark = pytest.mark.gpu

TOLERANCE = 0.02  # of the losses in bfloat16
RESUME_TOLERANCE = 0.01  # as in test_methods_on_cuda.py


def train(folder, tmp_path, **training):
    return train_on_gpu(
        folder, tmp_path / "-".join(training) / "out", **auto_dtype(training={"max_steps": 6, **training})
    )


@pytest.mark.parametrize(("setting", "package"), [("torch_compile", "triton"), ("use_liger_kernel", "liger_kernel")])
def test_other_kernels_have_the_losses_of_the_models_own(setting, package, tiny_model_folder, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")

    own, other = train(tiny_model_folder, tmp_path), train(tiny_model_folder, tmp_path, **{setting: True})

    assert other.assembly.notes == ()  # which would say that they were given up
    assert other.losses == pytest.approx(own.losses, rel=TOLERANCE)


@pytest.mark.e2e
def test_a_float16_run_goes_on_with_the_scale_of_its_loss(cuda_runs, cuda_workers):
    sections = {"model": {"compute_dtype": "float16"}, "run": {"devices": "auto"}}
    whole, run = cuda_runs.create(**sections), cuda_runs.create(**sections)

    assert cuda_workers.run(whole) == EXIT_FINISHED, cuda_workers.end_of_log()
    assert cuda_workers.run(run, "training:step-7=kill") < 0
    assert (newest_intact(run.folder.checkpoints).folder / "scaler.json").is_file()
    assert cuda_workers.run(run) == EXIT_FINISHED, cuda_workers.end_of_log()

    assert said(run, "parameters")[-1].compute_dtype == "float16"
    for (_, got), (_, wanted) in zip(losses_of(run), losses_of(whole), strict=True):
        assert got == pytest.approx(wanted, rel=RESUME_TOLERANCE)
