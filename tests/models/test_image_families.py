"""Families of vision-language models: where their parts are, and what an image becomes from its size alone."""

import json
import random
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.records import RowProblemError
from loratory.engine.data.render.template import tokenizer_fingerprint
from loratory.engine.errors import ModelError
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.families.registry import FAMILIES, family_of, require_family
from loratory.engine.models.source import ModelSource
from tests.image_rows import image_rows, rows_of
from tests.tiny_vision import MEMBERS, make_tiny_vision_model, make_vision_folder, member_of, trl_processor

EVERY_MEMBER = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.model_type)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {member.model_type: make_vision_folder(root / member.model_type, member) for member in MEMBERS}


def load(folder, **budget):
    values = {"min_pixels": None, "max_pixels": None, "do_image_splitting": None, **budget}
    tokenizer, _ = load_tokenizer(ModelSource(str(folder), folder.name), SimpleNamespace(**values))
    return tokenizer


def processed_text(processor, sizes):
    """Return what transformers writes for images of these sizes in one row, having processed them."""
    images = [[Image.new("RGB", size) for size in sizes]]
    options = processor._merge_kwargs(return_tensors="pt")["images_kwargs"]
    return processor._process_images(images, **options)[1]


def test_every_family_has_a_tiny_model_here():
    assert {member.model_type for member in MEMBERS} == {name for family in FAMILIES for name in family.model_types}


@EVERY_MEMBER
def test_the_parts_of_a_model_are_where_its_family_says(member, tmp_path):
    family = family_of({"model_type": member.model_type})
    folder = make_tiny_vision_model(tmp_path / "model", member)
    model = AutoModelForImageTextToText.from_pretrained(folder)

    parts = [family.tower, family.projector, family.language_model, *family.more_projectors]

    counts = [sum(weight.numel() for weight in model.get_submodule(part).parameters()) for part in parts]
    assert all(counts)
    assert model.get_submodule(family.language_model).get_input_embeddings() is model.get_input_embeddings()

    tokenizer = load(folder)
    rows = [row for row in image_rows(6, largest=150) if row.images]
    for row in rows:  # as many features as tokens, or the model refuses them
        (*_, sequence) = rows_of(row, tokenizer)
        ids = torch.tensor([sequence.input_ids])
        inputs = tokenizer.image_text.tensors([row.images]) | tokenizer.image_text.token_tensors([sequence.input_ids])
        assert set(inputs) == set(family.image_inputs)
        loss = model(input_ids=ids, labels=torch.tensor([sequence.labels]), **inputs).loss
        assert torch.isfinite(loss)


@EVERY_MEMBER
def test_the_text_of_an_image_follows_from_its_size(member, folders):
    folder = folders[member.model_type]
    image_text, processor = load(folder).image_text, trl_processor(folder, member)
    draw = random.Random(1)
    for _ in range(25):
        sizes = [
            (draw.randint(1, 40) * draw.choice([1, 7, 29]), draw.randint(1, 900)) for _ in range(draw.choice([1, 1, 2]))
        ]
        sizes = [(max(width, height // 150), max(height, width // 150)) for width, height in sizes]
        images = [ImageRef("0", *size) for size in sizes]

        assert image_text.expansions(images) == processed_text(processor, sizes)


def test_tiles_that_do_not_divide_the_longest_edge_are_counted_as_they_are_cut(tmp_path):
    member = member_of("idefics3")
    folder = make_vision_folder(tmp_path / "model", member)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"longest_edge": 200}, "max_image_size": {"longest_edge": 64}})
    )
    image_text, processor = load(folder).image_text, trl_processor(folder, member)

    for size in ((40, 11), (11, 40), (200, 130), (64, 64), (1000, 37)):
        assert [image_text.expansion(*size)] == processed_text(processor, [size])


@EVERY_MEMBER
def test_no_pixel_is_needed_for_the_text_of_an_image(member, folders):
    image_text = load(folders[member.model_type]).image_text
    tracemalloc.start()
    try:
        text = image_text.expansion(50_000, 40_000)  # six gigabytes of pixels
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert member.image_token in text
    assert peak < 10_000_000


@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_a_smaller_budget_of_pixels_takes_fewer_tokens(model_type, tmp_path):
    member = member_of(model_type)
    folder = make_tiny_vision_model(tmp_path / "model", member)
    tokenizer, small = load(folder), load(folder, max_pixels=70 * 70)

    counts = [each.image_text.expansion(600, 500).count(member.image_token) for each in (tokenizer, small)]

    assert counts[1] < counts[0] / 2
    assert tokenizer_fingerprint(small) != tokenizer_fingerprint(tokenizer)
    row = image_rows(1)[0]
    ids = rows_of(row, small)[0].input_ids
    inputs = small.image_text.tensors([row.images]) | small.image_text.token_tensors([ids])
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert torch.isfinite(model(input_ids=torch.tensor([ids]), **inputs).logits).all()


def test_a_budget_beyond_the_models_other_limit_moves_that_one(folders):
    tokens = {"max_pixels": 28 * 28, "min_pixels": 90 * 28 * 28}

    counts = [load(folders["qwen2_vl"], **{name: value}).image_text.expansion(50, 50) for name, value in tokens.items()]

    assert [text.count("<|image_pad|>") for text in counts] == [1, 100]


def test_an_image_may_be_kept_whole(folders):
    text = load(folders["smolvlm"], do_image_splitting=False).image_text

    assert text.expansion(600, 100).count("<image>") == 16
    assert text.tiles(600, 100) == (64, 64, 1, 1, False)


@pytest.mark.parametrize(
    ("model_type", "tiles"),
    [
        ("idefics3", (256, 192, 3, 4, True)),
        ("qwen2_vl", (196, 140, 5, 7, False)),
        ("qwen3_vl", (192, 128, 4, 6, False)),
        ("gemma3", (56, 56, 1, 1, False)),
        ("llava_onevision", (168, 168, 3, 3, True)),
    ],
)
def test_tiles_are_what_the_picture_is_cut_into(model_type, tiles, folders):
    assert load(folders[model_type]).image_text.tiles(200, 140) == tiles


def test_a_setting_that_a_family_lacks_is_refused(folders):
    with pytest.raises(ModelError, match=r"Gemma 3 has no setting vision\.max_pixels"):
        load(folders["gemma3"], max_pixels=1000)
    with pytest.raises(ModelError, match="it has min_pixels and max_pixels"):
        load(folders["qwen3_vl"], do_image_splitting=False)


def test_a_shape_that_a_family_refuses_is_a_problem_of_the_row(folders):
    with pytest.raises(RowProblemError, match=r"1,000 × 2 pixels is refused: absolute aspect ratio"):
        load(folders["qwen2_vl"]).image_text.expansion(1000, 2)


def test_models_without_a_known_family_are_refused_with_the_reason():
    with pytest.raises(ModelError, match=r"^own takes images, but its family \(pixtral\) is not supported"):
        require_family({"model_type": "pixtral", "vision_config": {}}, "own")
    with pytest.raises(ModelError, match=r"^own \(llama\) takes no images"):
        require_family({"model_type": "llama"}, "own")


@pytest.mark.parametrize("content", ["{", "[]", '{"size": {"height": "wide"}}', '{"patch_size": 0}'])
def test_a_damaged_image_processor_is_a_model_error(content, tmp_path):
    folder = make_vision_folder(tmp_path / "model", member_of("qwen2_vl"))
    (folder / "preprocessor_config.json").write_text(content)

    with pytest.raises(ModelError, match="model"):
        load(folder)


def test_a_tokenizer_without_tokens_for_images_is_a_model_error(tmp_path):
    folder = make_vision_folder(tmp_path / "model", member_of("idefics3"))
    text = (folder / "tokenizer.json").read_text().replace("<image>", "<icon>")
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace("<image>", "<icon>")
    )

    with pytest.raises(ModelError, match="lacks tokens for images"):
        load(folder)


def test_a_model_whose_image_files_are_missing_is_one_for_text(tmp_path):
    folder = make_vision_folder(tmp_path / "model", member_of("gemma3"))
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()

    assert load(folder).image_text is None


def test_an_adapter_finds_the_images_of_its_base(folders, tmp_path):
    tokenizer = load(folders["qwen2_vl"])
    tokenizer.save_pretrained(tmp_path / "adapter")

    again, _ = load_tokenizer(ModelSource(str(tmp_path / "adapter"), "adapter"), base=folders["qwen2_vl"])

    assert again.image_text.settings == tokenizer.image_text.settings
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
