"""The demo model with a vision tower is exported as any other: merged, verified, and loaded by transformers alone."""

import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from loratory.engine.config.run import ModelConfig
from loratory.engine.models.prepared import DEMO_VISION_ID
from loratory.engine.models.source import resolve_model
from tests.chat.tiny_adapters import lora
from tests.export.exporting import export, write_run
from tests.image_rows import random_image

pytestmark = pytest.mark.e2e


def test_the_merged_demo_model_sees_as_its_run(demo_home, tmp_path):
    base = Path(resolve_model(ModelConfig(id=DEMO_VISION_ID), demo_home).location)
    config = lora(target_modules=r"model\.text_model\..*\.(q_proj|v_proj)", modules_to_save=["model.connector"])
    run = write_run(tmp_path / "run", base, config)

    result = export(demo_home, run, tmp_path / "out", kind="merged", dtype="float32", verify=False)

    assert not [note for note in result.notes if "memory" in note]
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    question = [
        {"type": "image", "image": random_image(random.Random(0), 300)},
        {"type": "text", "text": "What is it?"},
    ]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    models = [
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32) for folder in (tmp_path / "out", base)
    ]
    tuned = PeftModel.from_pretrained(models[1], run / "adapter")
    with torch.inference_mode():
        merged, expected = (model.eval()(**prompt).logits for model in (models[0], tuned))
        answers = [m.generate(**prompt, max_new_tokens=12, do_sample=False) for m in (models[0], tuned)]
    assert (merged - expected).abs().max() < 1e-3 * expected.abs().max()
    assert torch.equal(*answers)
