"""Tiny vision-language models whose answers depend on the image, and what transformers' own `generate` answers."""

import io
import itertools
import random
from functools import cache

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForImageTextToText

from loratory.engine.chat.target import LoadRequest, plan_load
from loratory.engine.chat.worker.main import ChatWorker
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import IMAGE_MARK, Message
from loratory.engine.data.media.store import MediaStore
from loratory.engine.hardware.device import Device
from loratory.engine.models.families.registry import family_of
from tests.chat.tiny_adapters import make_adapter
from tests.image_rows import random_image
from tests.recorded_request import RecordedRequest
from tests.tiny_vision import make_tiny_vision_model, member_of, trl_processor

CPU = Device("cpu", 0, "Test CPU", 8 * 1024**3, 8 * 1024**3, has_fast_bfloat16=False, cores=1)
TOKENS = 16
TARGETS = r"model\.(language_model|text_model)\..*(q_proj|down_proj)"
QUESTION = f"{IMAGE_MARK}what is in the picture?"


class Family:
    """A model, an adapter of it, and some images."""

    def __init__(self, root, model_type):
        self.member = member_of(model_type)
        self.folder = make_lively_model(root / model_type, self.member)
        adapter = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
        self.adapter = make_adapter(self.folder, root / f"{model_type}-lora", adapter)
        draw = random.Random(5)
        self.pictures = [random_image(draw, 220) for _ in range(3)]
        self.store = MediaStore(root / "media")
        self.refs = [self.store.add(png(picture)) for picture in self.pictures]
        self.processor = trl_processor(self.folder, self.member)

    def turn(self, text):
        """Return a question with an image for each mark in it, from the first one on."""
        return Message("user", text, images=tuple(self.refs[: text.count(IMAGE_MARK)]))

    def expected(self, messages, adapter=False, most=TOKENS):
        """Return what transformers' own processor and `generate` make of a conversation."""
        turns, pictures = [], []
        for message in messages:
            pieces = message.content.split(IMAGE_MARK)
            parts = [part for piece in pieces for part in ({"type": "image"}, {"type": "text", "text": piece})][1:]
            turns.append({"role": message.role, "content": [p for p in parts if p.get("text") != ""]})
            pictures += [self.pictures[self.refs.index(ref)] for ref in message.images]
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        inputs = self.processor(
            text=text, images=[pictures] if pictures else None, add_special_tokens=False, return_tensors="pt"
        )
        model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        if adapter:
            model = PeftModel.from_pretrained(model, self.adapter).eval()
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=most, pad_token_id=0)
        end = self.processor.tokenizer.eos_token_id
        return list(itertools.takewhile(lambda token: token != end, output[0, inputs["input_ids"].shape[1] :].tolist()))

    def losses(self, row):
        """Return the losses of a row's trained tokens with the adapter, by the library's own forward pass."""
        model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, self.adapter).eval()
        pictures, ids = [self.pictures[self.refs.index(ref)] for ref in row.images], torch.tensor([row.input_ids])
        # The same text, whose images the processor writes out as it does in the row.
        inputs = {}
        if pictures:
            processor = self.processor
            inputs = dict(processor.image_processor([pictures], return_tensors="pt"))
            inputs = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            typing = family_of({"model_type": self.member.model_type}).typing_input
            if typing is not None:
                inputs[typing] = torch.tensor(processor.create_mm_token_type_ids([row.input_ids]))
        with torch.inference_mode():
            logits = model(input_ids=ids, **inputs).logits[0, :-1].float()
        targets = torch.tensor(row.labels[1:])
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
        return losses[targets >= 0].tolist()


def make_lively_model(folder, member):
    """Make a model with wide weights, whose answers wander and depend on the image; none ends by itself."""
    from safetensors.torch import load_file, save_file

    make_tiny_vision_model(folder, member)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if weight.ndim > 1:  # embeddings are also the head, and large ones repeat the last token
            weight *= 12 if "proj" in name else 1 if "embed_tokens" in name else 6
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def png(picture):
    target = io.BytesIO()
    picture.save(target, "PNG")
    return target.getvalue()


@cache
def family_in(root, model_type):
    """Return the family of a model type, made once for each folder."""
    return Family(root, model_type)


def load(home, family, target) -> ChatWorker:
    worker = ChatWorker(home)
    target = target.model_copy(update={"model": ModelConfig(id=str(family.folder), compute_dtype="float32")})
    params = LoadRequest(plan=plan_load(target), device=CPU, media=family.store._folder)
    worker.load(params.model_dump(mode="json"), RecordedRequest())
    return worker
