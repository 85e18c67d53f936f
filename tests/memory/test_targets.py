"""Which modules an adapter changes, told from the shape of a model alone."""

import pytest

from loratory.engine.config.run import AdapterConfig
from loratory.engine.errors import ConfigError
from loratory.engine.memory.structure import find_targets
from tests.benchmarks.published.shapes import PublishedSizes, published_shape

SHAPE = published_shape(
    "tiny",
    PublishedSizes(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=400),
)


def saved_modules(*names: str) -> list[str]:
    targets = find_targets(SHAPE, AdapterConfig(target_modules=("q_proj",), modules_to_save=names))
    return [module.name for module in targets.saved_in_full]


def test_a_module_that_holds_others_is_trained_with_all_of_them():
    assert saved_modules("layers.1.mlp") == [
        f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")
    ]
    assert saved_modules("norm") == ["model.norm"]


def test_a_name_that_matches_nothing_is_refused_with_what_exists():
    with pytest.raises(ConfigError) as error_info:
        saved_modules("lm_head", "lm_haed")

    (problem,) = error_info.value.problems
    assert problem.field == "adapter.modules_to_save"
    assert problem.message.startswith("lm_haed matches no module; this model's are ")
    assert "lm_head" in problem.message


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"r": 100}, "adapter.r", "100 is more than the 64 inputs of a layer"),
        ({"r": 24, "init_weights": "bat"}, "adapter.r", "24 does not divide the 64 inputs of a layer"),
        (
            {"r": 8, "init_weights": "mini", "mini_r": 7},
            "adapter.mini_r",
            "7 does not divide the 64 outputs of a layer",
        ),
    ],
)
def test_sizes_that_peft_would_refuse_are_refused_before_a_start(settings, field, message):
    with pytest.raises(ConfigError) as error_info:
        find_targets(SHAPE, AdapterConfig(method="miss", **settings))

    (problem,) = error_info.value.problems
    assert problem.field == field
    assert problem.message.startswith(message)
