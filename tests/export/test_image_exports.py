"""Exports of runs on vision-language models load with transformers and PEFT alone, and see as the run does."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from loratory.engine.config.load import config_from_mapping, config_to_yaml, mapping_from_file
from loratory.engine.config.vision import VisionConfig
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message
from loratory.engine.errors import ModelError
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.families.registry import family_of
from loratory.engine.models.source import ModelSource
from tests.chat.tiny_adapters import lora
from tests.export.exporting import ASKED, export, write_run
from tests.image_rows import ImageRow, random_image, rows_of
from tests.tiny_vision import MEMBERS, make_tiny_vision_model, member_of

pytestmark = pytest.mark.usefixtures("few_questions")

FAMILIES = [member.model_type for member in MEMBERS]
WITHOUT_VIDEOS = ("idefics3", "gemma3")  # whose processors need no package for videos


def write_vision_run(folder: Path, model_type: str, **lora_values) -> tuple[Path, Path]:
    """Write a run whose adapter has random weights, on the language model by full path; return it and its base."""
    base = make_tiny_vision_model(folder / "bases" / model_type, member_of(model_type))
    family = family_of({"model_type": model_type})
    assert family is not None
    values = {"target_modules": rf"{family.language_model}\..*\.(q_proj|down_proj)", **lora_values}
    return write_run(folder / model_type, base, lora(**values)), base


def inputs_with_image(folder: Path) -> dict[str, torch.Tensor]:
    """Return a question about a picture as the model of a folder takes it."""
    tokenizer, _ = load_tokenizer(ModelSource(str(folder), folder.name))
    image = random_image(random.Random(3), 120)
    question = Message("user", f"{IMAGE_MARK}what is a number", images=(ImageRef("a" * 64, *image.size),))
    (row,) = rows_of(ImageRow(Conversation((question, Message("assistant", "a"))), (image,)), tokenizer, 4096)
    tensors = tokenizer.image_text.tensors([[image]]) | tokenizer.image_text.token_tensors([row.input_ids])
    return {"input_ids": torch.tensor([row.input_ids]), **tensors}


@torch.inference_mode()
def logits(model, inputs) -> torch.Tensor:
    return model.eval()(**inputs).logits


def load(folder: Path):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def logits_of_run(run: Path, base: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(load(base), run / "adapter"), inputs_with_image(base))


def stored_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names.update(tensors.keys())
    return names


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_merged_model_sees_as_the_run_under_the_names_of_its_base(home, tmp_path, model_type):
    run, base = write_vision_run(tmp_path, model_type)

    result = export(home, run, tmp_path / "out", kind="merged", dtype="float32")

    assert result.verified.passed, result.verified
    assert result.verified.equal_answers == ASKED
    assert not [note for note in result.notes if "memory" in note]
    assert stored_names(tmp_path / "out") == stored_names(base)
    expected = logits_of_run(run, base)
    assert not torch.allclose(logits(load(base), inputs_with_image(base)), expected, atol=1e-3)
    assert torch.allclose(logits(load(tmp_path / "out"), inputs_with_image(tmp_path / "out")), expected, atol=1e-4)


@pytest.mark.parametrize("model_type", WITHOUT_VIDEOS)
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_processor_of_an_export_has_the_trained_template_and_sizes(home, tmp_path, model_type, kind):
    run, base = write_vision_run(tmp_path, model_type)
    vision = VisionConfig(max_pixels=128 * 128) if model_type == "idefics3" else None
    tokenizer, _ = load_tokenizer(ModelSource(str(base), model_type), vision)
    tokenizer.image_text.save(run / "adapter")  # as training does
    nested = {**member_of(model_type).processor, "image_processor": member_of(model_type).images}
    (base / "processor_config.json").write_text(json.dumps(nested))

    export(home, run, tmp_path / "out", kind=kind, verify=False)

    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.chat_template == member_of(model_type).chat_template
    question = {"type": "image", "image": random_image(random.Random(0), 60)}
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [question]}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert prompt["pixel_values"].numel()
    if model_type == "idefics3":
        assert processor.image_processor.size["longest_edge"] == 128


SCRIPT = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
base, adapter, inputs, expected = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
with torch.inference_mode():
    logits = PeftModel.from_pretrained(model, adapter).eval()(**load_file(inputs)).logits
assert not [name for name in sys.modules if name.startswith("loratory")]
assert torch.equal(logits, load_file(expected)["logits"]), "other logits"
"""


@pytest.mark.parametrize("model_type", ["idefics3", "qwen2_5_vl"])
def test_an_adapter_with_its_trained_projector_loads_without_loratory(home, tmp_path, model_type):
    family = family_of({"model_type": model_type})
    run, base = write_vision_run(tmp_path, model_type, modules_to_save=[family.projector])
    save_file({"logits": logits_of_run(run, base)}, tmp_path / "expected")
    save_file(inputs_with_image(base), tmp_path / "inputs")

    result = export(home, run, tmp_path / "out", kind="adapter")

    assert result.verified.passed
    assert result.verified.largest_logit_difference == 0
    arguments = [str(base), str(tmp_path / "out"), str(tmp_path / "inputs"), str(tmp_path / "expected")]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, env={}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("model_type", ["gemma3", "llava_onevision"])
def test_trained_parts_that_see_images_are_merged_too(home, tmp_path, model_type):
    family = family_of({"model_type": model_type})
    targets = rf"({family.language_model}|{family.tower})\..*q_proj"
    run, base = write_vision_run(tmp_path, model_type, target_modules=targets, modules_to_save=[family.projector])

    result = export(home, run, tmp_path / "out", kind="merged", dtype="float32")

    assert not [note for note in result.notes if "memory" in note]
    assert stored_names(tmp_path / "out") == stored_names(base)
    merged = logits(load(tmp_path / "out"), inputs_with_image(tmp_path / "out"))
    assert torch.allclose(merged, logits_of_run(run, base), atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "targets", "expected"),
    [
        ("qwen2_5_vl", None, "--limit-mm-per-prompt '{\"image\": 1}'"),
        ("gemma3", r"model\.vision_tower\..*q_proj", "it adapts what sees images"),
        ("llava_onevision", None, "takes no LoRA. Merge it into its base first."),
    ],
)
def test_the_card_says_how_vllm_serves_it(home, tmp_path, model_type, targets, expected):
    run, _ = write_vision_run(tmp_path, model_type, **({"target_modules": targets} if targets else {}))

    export(home, run, tmp_path / "out", kind="adapter", verify=False)

    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert "AutoModelForImageTextToText.from_pretrained" in card
    assert expected in card
    assert not (tmp_path / "out" / "vllm").exists()


@pytest.mark.parametrize("model_type", ["idefics3", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_an_export_is_compared_on_images_of_the_rows(home, tmp_path, model_type, kind):
    draw = random.Random(1)
    rows = [{"instruction": "What?", "output": "A.", "images": [f"{number}.png"]} for number in range(2)]
    for number in range(2):
        random_image(draw, 120).save(tmp_path / f"{number}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, _ = write_vision_run(tmp_path, model_type)
    values = mapping_from_file(run / "config.yaml")
    values["dataset"]["source"] = str(tmp_path / "rows.jsonl")
    (run / "config.yaml").write_text(config_to_yaml(config_from_mapping(values)))

    result = export(home, run, tmp_path / "out", kind=kind, **({"dtype": "float32"} if kind == "merged" else {}))

    assert result.verified.passed, result.verified
    assert result.verified.equal_answers == ASKED
    assert not [note for note in result.notes if "without images" in note]
    assert len(list(home.media.glob("*/*.png"))) == 2


def test_gguf_is_refused_before_anything_is_written(home, tmp_path):
    run, _ = write_vision_run(tmp_path, "qwen2_vl")

    with pytest.raises(ModelError, match=r"GGUF files of Qwen2-VL are not written.*mmproj"):
        export(home, run, tmp_path / "out", kind="gguf")

    assert not (tmp_path / "out").exists()
