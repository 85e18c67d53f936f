"""What the pages of a lab share, and what they do not."""

from engine.config.run import ModelConfig
from tests.fake_inspector import FakeInspector
from ui.backend.models import KnownShapes, Shapes


def test_shapes_of_the_catalogue_are_read_once_for_all_and_others_stay_a_persons_own():
    of_catalog: Shapes = {}
    ann, bea = (KnownShapes(FakeInspector(), of_catalog) for _ in range(2))  # type: ignore[arg-type]

    shape = ann.learn(ModelConfig(id="Qwen/Qwen3-0.6B"))
    ann.learn(ModelConfig(id="/models/of-ann"))

    assert bea.get("Qwen/Qwen3-0.6B", None) is shape
    assert bea.get("/models/of-ann", None) is None
    assert ann.get("/models/of-ann", None) is not None
