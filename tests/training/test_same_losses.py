"""A run with every optimization of a GPU has the losses of one without any; the benchmark of this name takes 50 steps."""

import pytest

from loratory.engine.config.optimizations import TRAINING_OPTIMIZATIONS
from tests.benchmarks.same_losses import METHODS, TOLERANCE, difference, losses
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model") / "qwen3", model_type="qwen3")


@pytest.mark.exhaustive
@pytest.mark.parametrize("joins", [True, False], ids=["joined", "padded"])
@pytest.mark.parametrize("method", METHODS)
def test_optimizations_change_no_loss(method, joins, folder):
    reference = losses(folder, method, 6, list(TRAINING_OPTIMIZATIONS), joins=joins)

    assert difference(losses(folder, method, 6, [], joins=joins), reference) <= TOLERANCE
    assert reference[-1] != reference[0]
