"""An inspector with a dataset and a good model, to be attacked."""

from collections.abc import Callable, Iterator

import pytest

from loratory.engine.config.run import ModelConfig
from tests.faults.hostile.watched import HostileFile, Target, attacked_inspector, make_hostile_model


@pytest.fixture(scope="session")
def shared_target(tmp_path_factory) -> Iterator[Target]:
    """One inspector for all attacks, as a server has it."""
    with attacked_inspector(tmp_path_factory.mktemp("attacked")) as target:
        yield target


@pytest.fixture
def target(shared_target) -> Target:
    """Return the shared target once nothing that an earlier attack ended is still starting."""
    shared_target.wait_until_calm()
    return shared_target


@pytest.fixture
def hostile_model(shared_target, tmp_path) -> Callable[..., ModelConfig]:
    """Return a function that copies the good model with other files in it."""

    def make(**files: HostileFile) -> ModelConfig:
        return make_hostile_model(shared_target.good_model, tmp_path, **files)

    return make
