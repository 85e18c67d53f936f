"""The estimate of runs on rows with images: what the tower takes, frozen and trained, and what smaller images save."""

from dataclasses import replace

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.data.contract import RowLengths
from loratory.engine.errors import RunError
from loratory.engine.hardware.device import Device
from loratory.engine.memory.advice import advise
from loratory.engine.memory.estimate import Estimator
from loratory.engine.memory.methods.registry import count_trainable
from loratory.engine.memory.persistent import weight_bytes
from loratory.engine.memory.structure import read_structure
from loratory.engine.memory.workload import workload_of_step
from loratory.engine.supervision.memory_measurement import config_of_rows
from tests.memory.image_steps import TOWER, ImageRows, first_pass, image_training, make_image_rows, measure, predict
from tests.tiny_vision import MEMBERS, member_of
from tests.training.tiny_training import CPU, GPU

FAMILIES = [member.model_type for member in MEMBERS]
GIB = 2**30


@pytest.fixture(scope="module")
def image_rows(tmp_path_factory):
    """Return rows of a family, made once."""
    root, known = tmp_path_factory.mktemp("images"), {}

    def make(family: str) -> ImageRows:
        if family not in known:
            tower = {"embed_dim": 128} if family == "qwen2_vl" else TOWER
            known[family] = make_image_rows(root, member_of(family), tower)
        return known[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_tower_keeps_nothing_and_its_pixels_are_counted(family, image_rows, tmp_path):
    data = image_rows(family)
    config, training = image_training(data, tmp_path)

    peak, prediction = measure(config, training)["backward"], predict(data, config)["backward"]

    assert prediction == pytest.approx(peak, rel=0.01)
    inputs = first_pass(training).inputs
    image_bytes = sum(inputs[name].nbytes for name in ("pixel_values", "pixel_attention_mask") if name in inputs)
    workload = workload_of_step(data.shape, config, CPU, data.lengths)
    assert read_structure(data.shape).tower.pixel_bytes(workload.pixels) == image_bytes


TRAINED = {
    "tower": ({"vision": {"tower": "full"}}, 0.01),
    "tower and projector": ({"vision": {"tower": "full", "projector": "full"}}, 0.01),
    "adapter": ({"vision": {"tower": "adapter"}}, 0.01),
    "projector": ({"vision": {"projector": "full"}}, 0.03),
    "everything": ({"adapter": {"method": "none"}, "vision": {"tower": "full", "projector": "full"}}, 0.01),
    "tower, checkpointed": ({"vision": {"tower": "full"}, "training": {"gradient_checkpointing": True}}, 0.01),
    "16 bits": ({"model": {"compute_dtype": "bfloat16"}, "vision": {"tower": "full"}}, 0.02),
}


@pytest.mark.parametrize(("sections", "most"), TRAINED.values(), ids=TRAINED.keys())
def test_a_trained_tower_keeps_all_of_its_activations(sections, most, image_rows, tmp_path):
    data = image_rows("idefics3")
    config, training = image_training(data, tmp_path, **sections)

    peak = measure(config, training)["backward"]

    assert predict(data, config)["backward"] == pytest.approx(peak, rel=most)


# Qwen rotates at 32 bits, and Qwen2-VL's activation keeps a tensor more.
MOST_OFF = {"qwen2_vl": 0.17, "qwen2_5_vl": 0.09, "qwen3_vl": 0.11, "gemma3": 0.03, "llava_onevision": 0.09}


@pytest.mark.parametrize("family", MOST_OFF)
def test_towers_of_other_families_take_about_what_is_estimated(family, image_rows, tmp_path):
    data = image_rows(family)
    config, training = image_training(data, tmp_path, vision={"tower": "full"})

    peak = measure(config, training)["backward"]

    assert predict(data, config)["backward"] == pytest.approx(peak, rel=MOST_OFF[family])


@pytest.mark.parametrize("method", ["lora", "none"])
@pytest.mark.parametrize(("tower", "projector"), [("frozen", "frozen"), ("full", "adapter"), ("adapter", "full")])
@pytest.mark.parametrize("family", ["idefics3", "qwen3_vl"])
def test_what_is_trained_is_counted(family, tower, projector, method, image_rows, tmp_path):
    data = image_rows(family)
    if method == "none":  # which has no adapter
        tower, projector = (part.replace("adapter", "frozen") for part in (tower, projector))
    vision = {"tower": tower, "projector": projector}
    config, training = image_training(data, tmp_path, adapter={"method": method}, vision=vision)

    counts = count_trainable(data.shape, config.adapter, vision=config.vision)

    weights = list(training.trainer.model.parameters())
    assert counts.total == sum(weight.numel() for weight in weights)
    assert counts.trainable == sum(weight.numel() for weight in weights if weight.requires_grad)


def config_of(**sections):
    return config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "-"}} | sections)


TEXTS = RowLengths(tokens=(300, 200), trained=(100, 100), count=2)


def test_rows_of_text_are_estimated_as_those_of_a_text_model(image_rows):
    shape = image_rows("idefics3").shape
    text = shape.model_copy(update={"modules": tuple(m for m in shape.modules if m.part is None)})
    config = config_of(training={"max_length": 512})

    ours, of_text = (Estimator(each, CPU, TEXTS) for each in (shape, text))

    assert ours.workload(config) == of_text.workload(config)
    seeing = (module for module in shape.modules if module.part is not None)
    more = ours.estimate(config).allocated_bytes - of_text.estimate(config).allocated_bytes
    assert more == sum(weight_bytes(seeing, ours.workload(config)))


def test_unknown_rows_are_full_of_images(image_rows):
    data = image_rows("qwen2_5_vl")
    config = config_of(training={"max_length": 512})

    ceiling, known = (Estimator(data.shape, CPU, rows).workload(config) for rows in (None, data.lengths))

    tower = read_structure(data.shape).tower
    assert ceiling.pixels == ceiling.tokens * tower.patches_per_token * tower.patch_pixels
    assert known.pixels < ceiling.pixels
    assert not ceiling.joined


def test_what_sees_images_stays_whole_where_weights_are_not(image_rows):
    data = image_rows("idefics3")
    quantized = config_of(model={"id": "m", "quantization": "nf4"})
    sharded = replace(Estimator(data.shape, GPU, data.lengths).workload(config_of()), sharded=2)

    assert not any(module.is_quantizable for module in data.shape.modules if module.part is not None)
    text = data.shape.model_copy(update={"modules": tuple(m for m in data.shape.modules if m.part is None)})
    workload = workload_of_step(data.shape, quantized, GPU, data.lengths)
    seeing = [module for module in data.shape.modules if module.part is not None]
    assert sum(weight_bytes(data.shape.modules, workload)) - sum(weight_bytes(text.modules, workload)) == sum(
        module.parameters * 2 for module in seeing
    )
    # Each device has half of the tower, and all of it while it runs.
    peak = Estimator(data.shape, GPU, data.lengths).peak(sharded)
    whole = sum(weight_bytes(seeing, sharded))
    assert peak.group_bytes.weight_copies > whole


def small_gpu(gib: float) -> Device:
    return Device("cuda", 0, "a GPU", int(gib * GIB), int(gib * GIB), has_fast_bfloat16=True)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [("idefics3", {"fewer_pixels", "whole_images"}), ("qwen2_5_vl", {"fewer_pixels"}), ("gemma3", set())],
)
def test_smaller_images_are_advised_where_the_family_has_a_budget(family, kinds, image_rows):
    data = image_rows(family)
    tokens = data.lengths.tokens[0] * 40
    rows = data.lengths.model_copy(
        update={"tokens": (tokens,), "trained": (9,), "pixels": (data.lengths.pixels[0] * 40,), "count": 1}
    )
    config = config_of(training={"max_length": 65_536})

    advice = advise(data.shape, config, small_gpu(0.5), rows)

    image_changes = {
        change.kind: change for change in advice.changes if change.kind in ("fewer_pixels", "whole_images")
    }
    assert set(image_changes) == kinds
    now = Estimator(data.shape, small_gpu(0.5), rows).need(config).needed_bytes
    for change in image_changes.values():
        assert change.needed_bytes < now
        assert change.overrides[0].startswith("vision.")
    assert "shorter_rows" not in {change.kind for change in advice.changes}, "images are never cut"


def test_a_step_with_images_is_not_measured(image_rows):
    data = image_rows("idefics3")

    with pytest.raises(RunError, match="measured rows have text alone"):
        config_of_rows(Estimator(data.shape, CPU, data.lengths), config_of())
