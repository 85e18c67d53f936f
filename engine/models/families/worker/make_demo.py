"""The process that makes an Idefics3 of the demo model: `python -P -m loratory.engine.models.families.worker.make_demo`.

The vision tower has learned nothing: trained as full weights with its projector, it learns shapes and colours in minutes.
"""

import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from loratory.engine.data.render.template import with_parts
from loratory.engine.processes.limits import lift_memory_limit
from loratory.engine.processes.messages import JsonObject, Request, serve

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the folder

_TILE, _PATCH, _SCALE = 64, 8, 2  # pixels; (64 / 8 / 2)² = 16 tokens for each tile
_TOWER = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3}
_TILE_TOKENS = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]


def make(params: JsonObject, _request: Request) -> JsonObject:
    """Write the demo model in the folder `base`, with a random vision tower, into the folder `target`."""
    base, target = params["base"], Path(params["target"])
    text = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base)
    images = Idefics3ImageProcessorPil(max_image_size={"longest_edge": _TILE}, size={"longest_edge": 2 * _TILE})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<global-img>", *_TILE_TOKENS]})
    tokens = (_TILE // _PATCH // _SCALE) ** 2
    template = with_parts(tokenizer.chat_template, "<image>")
    processor = Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=template)
    config = Idefics3Config(
        text_config=text.config.to_dict(),
        vision_config={"image_size": _TILE, "patch_size": _PATCH, **_TOWER},
        image_token_id=processor.image_token_id,
        scale_factor=_SCALE,
        tie_word_embeddings=True,
        **{name: getattr(text.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config).to(torch.bfloat16)
    model.model.text_model.load_state_dict(text.model.state_dict())
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.name_or_path = model.config.text_config.name_or_path = ""
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return {}


if __name__ == "__main__":
    lift_memory_limit()  # a data process may have started this one
    serve({"make": make})
