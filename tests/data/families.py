"""Tokenizers of the families that people train: their own chat templates over one small vocabulary."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from loratory.engine.data.passes.reader import Renderer
from loratory.engine.data.render.template import ChatTokenizer, freeze_template
from tests.tiny_model import train_bpe

CORPUS = "user assistant system the a rank of an adapter is a number and what does it do with one two three "


@dataclass(frozen=True)
class Family:
    """A chat template with the tokens that its tokenizer keeps whole."""

    name: str
    template: str  # file name in trl's chat_templates
    eos: str
    turn_end: str  # what ends an assistant's turn
    controls: tuple[str, ...]
    bos: str | None = None
    pad: str | None = None
    rewrites_turns: bool = False  # an earlier turn looks otherwise than the same turn at the end
    oracle: str | None = None  # trl's template with {% generation %} marks that renders the same text


FAMILIES = (
    Family("qwen3", "qwen3.jinja", "<|im_end|>", "<|im_end|>", ("<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
           pad="<|endoftext|>", rewrites_turns=True),
    Family("qwen2.5", "qwen2_5.jinja", "<|im_end|>", "<|im_end|>", ("<|im_start|>", "<tool_call>", "</tool_call>"),
           pad="<|endoftext|>", oracle="qwen2_5_training.jinja"),
    Family("llama3", "llama3.jinja", "<|eot_id|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"),
           bos="<|begin_of_text|>", oracle="llama3_training.jinja"),
    Family("llama3.1", "llama3_1.jinja", "<|eot_id|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
           bos="<|begin_of_text|>", pad="<|finetune_right_pad_id|>"),
    Family("gemma", "gemma.jinja", "<eos>", "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"),
           bos="<bos>", pad="<pad>", oracle="gemma_training.jinja"),
    Family("phi3", "phi3.jinja", "<|endoftext|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
           pad="<|placeholder1|>", oracle="phi3_training.jinja"),
    Family("cohere", "cohere.jinja", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
           ("<|START_OF_TURN_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
           bos="<BOS_TOKEN>", pad="<PAD>", oracle="cohere_training.jinja"),
    Family("gpt-oss", "gptoss.jinja", "<|return|>", "<|return|>", ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"),
           pad="<|endoftext|>", rewrites_turns=True),
    Family("deepseek-r1-distill", "deepseek_r1_distill.jinja", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
           ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
           bos="<｜begin▁of▁sentence｜>", pad="<｜▁pad▁｜>", rewrites_turns=True),
)  # fmt: skip


def family(name: str) -> Family:
    """Return the family of that name."""
    return next(member for member in FAMILIES if member.name == name)


def template_text(file_name: str) -> str:
    """Return a template that the installed trl ships."""
    return (files("trl") / "chat_templates" / file_name).read_text(encoding="utf-8")


def tokenizer_of(member: Family, *, frozen: bool = True) -> ChatTokenizer:
    """Return a tokenizer of the family, as the loader prepares it; or as it is published."""
    controls = [token for token in (member.eos, member.bos, member.pad, *member.controls) if token]
    tokenizer = bpe_tokenizer(tuple(dict.fromkeys(controls)))
    tokenizer.eos_token = member.eos
    if member.bos:
        tokenizer.bos_token = member.bos
    if member.pad:
        tokenizer.pad_token = member.pad
    tokenizer.chat_template = template_text(member.template)
    if frozen:
        freeze_template(tokenizer)
    return tokenizer


@cache
def shared_tokenizer(name: str = "qwen2.5") -> ChatTokenizer:
    """Return a tokenizer of a family, or Llama 2's, for tests that do not change it."""
    return sentencepiece_tokenizer() if name == "llama2" else tokenizer_of(family(name))


def renderer_of(max_length: int | None = None, name: str = "qwen2.5", *, notes: tuple[str, ...] = ()) -> Renderer:
    """Return a renderer with the shared tokenizer of a family."""
    return Renderer(shared_tokenizer(name), max_length, "tiny", notes)


LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
    "{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system else '' }}{{ m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def sentencepiece_tokenizer():
    """Return a tokenizer like Llama 2's: SentencePiece with spaces in front of words, and bytes as fallback."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces
    trained.train_from_iterator([CORPUS] * 20, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    fast.chat_template = LLAMA2_TEMPLATE
    freeze_template(fast)
    return fast


def bpe_tokenizer(controls: tuple[str, ...]):
    """Return a byte-level BPE tokenizer with these control tokens."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=train_bpe(f"{CORPUS}\n\n{CORPUS}\n", list(controls), 500))
