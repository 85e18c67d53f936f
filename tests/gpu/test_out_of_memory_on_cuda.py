"""A GPU that is really full: the cause is reported in plain words, with advice that fits the settings."""

import pytest
import torch

from loratory.engine.training.failure import explain
from tests.gpu.cuda_training import auto_dtype, cuda_placement
from tests.training.tiny_training import make_config, make_rows, make_training

pytestmark = pytest.mark.gpu


@pytest.fixture
def little_memory():
    """Lets this process take next to nothing beyond what it has."""

    def limit() -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2**21) / total))

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_full_gpu_is_named(tiny_model_folder, tmp_path, little_memory):
    settings = {"max_length": 512, "gradient_accumulation_steps": 8, "per_device_train_batch_size": 64}
    sections = auto_dtype(training=settings)
    config = make_config(tiny_model_folder, **sections)
    setup = make_training(config, make_rows(128, longest=500), tmp_path / "out", placement=cuda_placement())
    little_memory()

    with pytest.raises(torch.OutOfMemoryError) as error_info:
        setup.trainer.train()

    failure = explain(error_info.value, config)
    assert failure.cause == "out_of_memory"
    assert "GPU" in failure.what
    assert "loratory estimate" in failure.fix
