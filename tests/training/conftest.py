"""Tiny models are quickest on one thread, and do not disturb what runs next to them."""

import pytest
import torch

from tests.training.forking_workers import ForkingWorkers
from tests.training.worker_runs import WorkerRuns, write_questions


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def workers():
    """Return a starter of real workers."""
    return ForkingWorkers()


@pytest.fixture
def runs(home, tiny_model_folder, tmp_path) -> WorkerRuns:
    """Return a maker of runs of the tiny model."""
    return WorkerRuns(home, tiny_model_folder, write_questions(tmp_path / "questions.jsonl"))
