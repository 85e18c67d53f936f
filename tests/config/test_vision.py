"""Settings of models that take images: what is refused before a start, with its reason."""

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.errors import ConfigError


def make(**sections):
    return config_from_mapping({"model": {"id": "a/b"}, "dataset": {"source": "rows.jsonl"}, **sections})


def test_only_the_language_model_is_trained_by_default():
    vision = make().vision

    assert not vision.trains_part
    assert (vision.min_pixels, vision.max_pixels, vision.do_image_splitting) == (None, None, None)


@pytest.mark.parametrize(
    ("sections", "field", "reason"),
    [
        ({"vision": {"min_pixels": 2000, "max_pixels": 1000}}, "vision.min_pixels", r"above max_pixels \(1,000\)"),
        ({"vision": {"tower": "adapter"}, "adapter": {"method": "none"}}, "vision.tower", "no adapter; set full, or frozen"),
        ({"vision": {"projector": "full"}, "adapter": {"method": "prefix_tuning"}}, "vision.projector", "adapts no layers"),
        (
            {"vision": {"tower": "full"}, "run": {"fsdp": "full_shard", "launcher": "accelerate", "devices": [0, 1]}},
            "vision.tower",
            "FSDP2 cannot divide it, as some passes have no images",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_reason(sections, field, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        make(**sections)

    assert [problem.field for problem in caught.value.problems] == [field]


def test_full_fine_tuning_may_train_a_part_too():
    assert make(vision={"projector": "full"}, adapter={"method": "none"}).vision.trains_part
