"""Vision-language models small enough to make in a second: each family's real architecture, processor and chat template."""

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.tiny_model import train_bpe

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
_IDEFICS3_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
}
_IDEFICS3_TOKENS = (
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)),
)
_QWEN_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>".split()
)
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_PINPOINTS = [[56 * rows, 56 * columns] for rows in range(1, 4) for columns in range(1, 4)]
LLAVA_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endgeneration %}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class VisionMember:
    """A family: its tokens, its template, and the smallest settings that show how it cuts images."""

    model_type: str
    template: str  # in trl's chat_templates, which has the same with {% generation %} marks; "" for LLaVA-OneVision's
    tokens: tuple[str, ...]
    eos: str
    pad: str
    image_token: str  # whose id its images have
    images: dict[str, Any]  # preprocessor_config.json
    processor: dict[str, Any] = field(default_factory=dict)  # processor_config.json
    bos: str | None = None
    named_tokens: dict[str, str] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)  # vision_config
    text: dict[str, Any] = field(default_factory=dict)  # text_config, over TEXT
    config: dict[str, Any] = field(default_factory=dict)  # the rest of config.json

    @property
    def chat_template(self) -> str:
        return _template(f"{self.template}.jinja") if self.template else LLAVA_TEMPLATE

    @property
    def oracle(self) -> str:
        """The same template with marks of what an assistant writes."""
        return _template(f"{self.template}_training.jinja") if self.template else LLAVA_TEMPLATE


def _template(name: str) -> str:
    return (files("trl") / "chat_templates" / name).read_text(encoding="utf-8")


def _idefics3(model_type: str, template: str, bos: str) -> VisionMember:
    return VisionMember(
        model_type,
        template,
        ("<|endoftext|>", bos, *_IDEFICS3_TOKENS),
        eos="<end_of_utterance>",
        pad="<|endoftext|>",
        bos=bos,
        image_token="<image>",
        images={"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}},
        processor={"image_seq_len": 16},
        vision={"model_type": f"{model_type}_vision", **_IDEFICS3_VISION},
        text={"model_type": "llama"},
        config={"scale_factor": 2},
    )


def _qwen(model_type: str, template: str, patch: int, vision: dict[str, Any], text_type: str) -> VisionMember:
    return VisionMember(
        model_type,
        template,
        tuple(_QWEN_TOKENS),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        image_token="<|image_pad|>",
        images={
            "patch_size": patch,
            "size": {"shortest_edge": 4 * patch * patch * 4, "longest_edge": 40 * patch * patch * 4},
        },
        vision={"depth": 2, "num_heads": 2, "patch_size": patch, **vision},
        text={"model_type": text_type, "rope_parameters": _MROPE},
    )


MEMBERS = (
    _idefics3("idefics3", "idefics3", "<|begin_of_text|>"),
    _idefics3("smolvlm", "smolvlm", "<|im_start|>"),
    _qwen("qwen2_vl", "qwen2_5_vl", 14, {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}, "qwen2_vl_text"),
    _qwen(
        "qwen2_5_vl",
        "qwen2_5_vl",
        14,
        {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "fullatt_block_indexes": [1]},
        "qwen2_5_vl_text",
    ),
    _qwen(
        "qwen3_vl",
        "qwen3_vl",
        16,
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        "qwen3_vl_text",
    ),
    VisionMember(
        "gemma3",
        "gemma3",
        tuple("<pad> <eos> <bos> <start_of_turn> <end_of_turn> <start_of_image> <end_of_image> <image_soft_token>".split()),
        eos="<eos>",
        pad="<pad>",
        bos="<bos>",
        image_token="<image_soft_token>",
        named_tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        images={"size": {"height": 56, "width": 56}, "do_pan_and_scan": None},
        processor={"image_seq_length": 4},
        vision=_SIGLIP,
        text={"model_type": "gemma3_text", "sliding_window": 512},
        config={"mm_tokens_per_image": 4},
    ),
    VisionMember(
        "llava_onevision",
        "",
        (*_QWEN_TOKENS, "<image>", "<video>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        image_token="<image>",
        images={"size": {"height": 56, "width": 56}, "image_grid_pinpoints": _PINPOINTS},
        processor={"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
        vision=_SIGLIP,
        text={"model_type": "qwen2"},
        config={"image_grid_pinpoints": _PINPOINTS, "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    ),
)  # fmt: skip


def member_of(model_type: str) -> VisionMember:
    """Return the family of that model type."""
    return next(member for member in MEMBERS if member.model_type == model_type)


def make_vision_folder(folder: Path, member: VisionMember, vocabulary: Path | None = None) -> Path:
    """Write everything of such a model but its weights.

    Args:
        folder: Created.
        member: The family.
        vocabulary: A tokenizer.json that gets the family's tokens in addition; a byte-level one of 400 tokens by default.
    """
    from tokenizers import Tokenizer
    from transformers import AutoConfig, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    if vocabulary is None:
        backend = train_bpe("user assistant system the a picture of an image is a number ", ["<unk>"], 400)
    else:
        backend = Tokenizer.from_file(str(vocabulary))
    specials = {"bos_token": member.bos} if member.bos else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=member.eos, pad_token=member.pad, unk_token="<unk>", **specials
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(member.tokens)})
    tokenizer.chat_template = member.chat_template
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | member.named_tokens))
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    names = {
        "image_token_id": member.image_token,
        "image_token_index": member.image_token,
        "video_token_id": "<|video_pad|>",
        "video_token_index": "<video>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "boi_token_index": "<start_of_image>",
        "eoi_token_index": "<end_of_image>",
    }
    special_ids = {name: ids[token] for name, token in names.items() if token in ids}
    ends = {"eos_token_id": ids[member.eos], "pad_token_id": ids[member.pad]}
    text = {**TEXT, **ends, "vocab_size": len(tokenizer), **member.text}
    if member.bos:
        text["bos_token_id"] = ids[member.bos]
    known = AutoConfig.for_model(member.model_type).to_dict()
    values = {name: value for name, value in special_ids.items() if name in known}
    config = AutoConfig.for_model(
        member.model_type,
        text_config=text,
        vision_config=member.vision,
        tie_word_embeddings=True,
        **values,
        **member.config,
    )
    config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(member.images))
    (folder / "processor_config.json").write_text(json.dumps(member.processor))
    return folder


def make_tiny_vision_model(folder: Path, member: VisionMember, vocabulary: Path | None = None, seed: int = 0) -> Path:
    """Write such a model with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    make_vision_folder(folder, member, vocabulary)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma 3 begins with zeros, through which no image is seen
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return folder


def trl_processor(folder: Path, member: VisionMember) -> Any:
    """Return transformers' own processor of such a folder, without videos, which need torchvision."""
    from types import SimpleNamespace

    import transformers
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
    from transformers.models.smolvlm import processing_smolvlm

    processing_smolvlm.num2words = str  # it names the frames of videos
    original = getattr(transformers, PROCESSOR_MAPPING_NAMES[member.model_type])
    no_check = {"check_argument_for_proper_class": lambda self, name, argument: None}
    kind: Any = type(original.__name__, (original,), no_check)
    parts = {
        "image_processor": AutoImageProcessor.from_pretrained(folder),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "video_processor": SimpleNamespace(num_frames=1, fps=1, model_input_names=[]),
    }
    parts = {name: parts[name] for name in kind.get_attributes()}
    return kind(**parts, **member.processor, chat_template=member.chat_template)
