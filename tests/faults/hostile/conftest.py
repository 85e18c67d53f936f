"""An inspector with a dataset and a good model, to be attacked."""

from collections.abc import Callable, Iterator

import pytest

from engine.config.run import ModelConfig
from tests.faults.hostile.watched import HostileFile, Target, attacked_inspector, make_hostile_model


@pytest.fixture(scope="session")
def attacked(tmp_path_factory) -> Iterator[Target]:
    """One inspector for all attacks, as a server has it."""
    with attacked_inspector(tmp_path_factory.mktemp("attacked")) as target:
        yield target


@pytest.fixture
def target(attacked) -> Target:
    """The same when nothing that an earlier attack ended is still starting."""
    attacked.wait_until_calm()
    return attacked


@pytest.fixture
def hostile_model(attacked, tmp_path) -> Callable[..., ModelConfig]:
    """Makes a copy of the good model with other files in it."""

    def make(**files: HostileFile) -> ModelConfig:
        return make_hostile_model(attacked.good_model, tmp_path, **files)

    return make
