"""Real training workers, for tests that break them."""

import pytest

from tests.training.forking_workers import ForkingWorkers
from tests.training.worker_runs import WorkerRuns, write_questions


@pytest.fixture(scope="session")
def workers():
    """Starts real workers."""
    return ForkingWorkers()


@pytest.fixture
def runs(home, tiny_model_folder, tmp_path) -> WorkerRuns:
    """Makes runs of the tiny model."""
    return WorkerRuns(home, tiny_model_folder, write_questions(tmp_path / "questions.jsonl"))
