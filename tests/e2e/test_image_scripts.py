"""Short scripts of runs with images are plain TRL, and begin with the loss that transformers has on the same rows."""

import json
import random
import re

import pytest
import torch
from transformers import AutoModelForImageTextToText

from loratory.engine.config.load import config_from_mapping
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message
from loratory.engine.data.passes.row_form import read_row_form
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import RunError
from loratory.engine.export.job import ScriptOrder
from loratory.engine.export.script.write import gather_script_facts, write_short_script
from loratory.engine.export.worker.script import write_exact_script
from loratory.engine.models.source import ModelSource
from tests.e2e.test_scripts_for_real import ONE_BY_ONE, run_alone
from tests.image_rows import ImageRow, random_image, trl_batch
from tests.tiny_vision import make_tiny_vision_model, member_of, trl_processor

pytestmark = pytest.mark.e2e


def script_of(config, home) -> str:
    form = read_row_form(config.dataset, SourceOptions(home=home))
    return write_short_script(gather_script_facts(config, home), form)


def write_pictures(folder, *, pairs: bool = False) -> list[ImageRow]:
    """Write four rows with pictures in files next to them, the second with a place in its text."""
    draw, rows, lines = random.Random(0), [], []
    for number in range(4):
        image = random_image(draw, 100)
        image.save(folder / f"{number}.png")
        text = f"what is<image> {number}" if number == 1 else f"what is {number}"
        content = text.replace("<image>", IMAGE_MARK) if number == 1 else f"{IMAGE_MARK}{text}"
        turns = (
            Message("user", content, images=(ImageRef("a" * 64, *image.size),)),
            Message("assistant", "a number " * (number + 1)),
        )
        rows.append(ImageRow(Conversation(turns, completion_start=1), (image,)))
        row = {"instruction": text, "output": turns[1].content}
        if pairs:
            row = {"prompt": text, "chosen": turns[1].content, "rejected": "the a"}
        lines.append(json.dumps({**row, "images": [f"{number}.png"]}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return rows


def make_config(folder, model, training=None, **sections):
    values = {
        "max_steps": 6,
        "warmup_steps": 0,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
    }
    return config_from_mapping(
        {
            "model": {"id": str(model), "compute_dtype": "float32"},
            "dataset": {"source": str(folder / "rows.jsonl"), "eval_fraction": 0.0, "train_on": "last_assistant"},
            "training": {**values, "max_length": 1024, "learning_rate": 1e-2, **(training or {})},
            "run": {"name": "pictures", "devices": "cpu"},
            **sections,
        }
    )


@pytest.mark.parametrize("model_type", ["idefics3", "gemma3"])  # whose processors need no package for videos
def test_a_short_script_begins_with_the_loss_of_the_same_rows(model_type, home, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    member = member_of(model_type)
    model = make_tiny_vision_model(tmp_path / model_type, member)
    rows = write_pictures(tmp_path)
    text = script_of(make_config(tmp_path, model), home)
    assert "loratory" not in re.sub(r'^""".*?"""', "", text, flags=re.DOTALL).lower()
    (tmp_path / "script.py").write_text(text)

    output = run_alone("-c", ONE_BY_ONE, tmp_path / "script.py", folder=tmp_path)

    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", output)]
    assert len(losses) == 6
    with torch.no_grad():
        batch = trl_batch(rows, trl_processor(model, member), member, "prompt_completion")
        expected = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)(**batch).loss
    assert losses[0] == pytest.approx(float(expected), rel=1e-3)  # as it is printed
    assert losses[-1] < losses[0]
    assert (tmp_path / "pictures-merged" / "model.safetensors").is_file()


def test_a_short_script_compares_answers_to_images(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    model = make_tiny_vision_model(tmp_path / "idefics3", member_of("idefics3"))
    write_pictures(tmp_path, pairs=True)
    vision = {"do_image_splitting": False}
    text = script_of(make_config(tmp_path, model, {"objective": "dpo"}, vision=vision), home)
    assert "AutoProcessor.from_pretrained(MODEL, do_image_splitting=False)" in text
    assert r'target_modules="model\\.text_model\\..*\\.([^.]+_proj)"' in text
    (tmp_path / "script.py").write_text(text)

    output = run_alone("-c", ONE_BY_ONE, tmp_path / "script.py", folder=tmp_path)

    assert float(re.findall(r"'loss': '?([\d.]+)", output)[0]) == pytest.approx(0.693, abs=0.01)


@pytest.mark.parametrize(
    ("model_type", "vision", "reason"),
    [
        ("idefics3", {"max_pixels": 16_384}, "vision.max_pixels is not an argument of its processor"),
        ("gemma3", {"projector": "full"}, "what sees images is trained"),
    ],
)
def test_what_a_script_cannot_do_is_refused(model_type, vision, reason, home, tmp_path):
    model = make_tiny_vision_model(tmp_path / model_type, member_of(model_type))
    write_pictures(tmp_path)

    with pytest.raises(RunError, match=reason):
        script_of(make_config(tmp_path, model, vision=vision), home)
    order = ScriptOrder(config=make_config(tmp_path, model), folder=tmp_path)
    with pytest.raises(RunError, match="no exact script"):
        write_exact_script(order, ModelSource(str(model), model_type), home, lambda _: None)
