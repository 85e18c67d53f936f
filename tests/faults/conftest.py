"""Real training workers, for tests that break them, and what their runs would have learned without it."""

import pytest

from loratory.engine.training.worker import EXIT_FINISHED
from tests.training.conftest import runs, workers  # noqa: F401 - fixtures
from tests.training.worker_runs import losses_of


@pytest.fixture(scope="session")
def known_losses():
    """Return known losses by the sections of their run; each is trained once."""
    return {}


@pytest.fixture
def losses_without_faults(known_losses, workers, runs):  # noqa: F811
    """Return a function that gives the losses of an undisturbed run with some sections."""

    def find(sections):
        key = repr(sections)
        if key not in known_losses:
            run = runs.create(**sections)
            assert workers.run(run.folder.path) == EXIT_FINISHED
            known_losses[key] = losses_of(run)
        return known_losses[key]

    return find
