"""The demo model with a random vision tower: assembled once, and a model like any other."""

import random

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message
from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
from loratory.engine.models.demo_vision import demo_vision_folder
from loratory.engine.models.prepared import DEMO_VISION_ID, demo_folder
from loratory.engine.models.source import find_model, may_need_hub, resolve_model
from loratory.engine.paths import LoratoryHome
from tests.image_rows import ImageRow, random_image, rows_of

MODEL = ModelConfig(id=DEMO_VISION_ID)


def home_with_demo(demo_home, folder):
    home = LoratoryHome(folder)
    home.models.mkdir(parents=True)
    demo_folder(home).symlink_to(demo_folder(demo_home))
    return home


def test_the_demo_model_sees_after_its_first_use(demo_home, tmp_path):
    home = home_with_demo(demo_home, tmp_path / "home")
    assert find_model(MODEL, home) is None
    assert not may_need_hub(MODEL)

    source = resolve_model(MODEL, home)

    folder = demo_vision_folder(home)
    assert source == (str(folder), DEMO_VISION_ID, None, None)
    assert find_model(MODEL, home) == folder
    inode = (folder / "model.safetensors").stat().st_ino
    assert resolve_model(MODEL, home) == source  # at once
    assert (folder / "model.safetensors").stat().st_ino == inode
    assert sorted(path.name for path in home.models.iterdir() if path.is_dir()) == [demo_folder(home).name, folder.name]

    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    text = AutoModelForCausalLM.from_pretrained(demo_folder(home), dtype=torch.float32)
    tokenizer, template = load_tokenizer(source)
    assert not template.warnings
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        expected = text(input_ids=ids).logits
        difference = model(input_ids=ids).logits[..., : expected.shape[-1]] - expected
    assert difference.abs().max() < 1e-3

    image = random_image(random.Random(0), 200)
    turns = (
        Message("user", f"{IMAGE_MARK}What is it?", images=(ImageRef("a" * 64, *image.size),)),
        Message("assistant", "A cat."),
    )
    (row,) = rows_of(ImageRow(Conversation(turns), (image,)), tokenizer, 512)
    inputs = tokenizer.image_text.tensors([[image]])
    loss = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]), **inputs).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert model.model.vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0
    assert model.model.connector.modality_projection.proj.weight.grad.abs().max() > 0
    assert AutoProcessor.from_pretrained(folder).image_seq_len == 16
