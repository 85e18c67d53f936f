"""Models small enough to make in a second: real architectures with random weights, and a real tokenizer."""

from pathlib import Path

CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(folder: Path, *, model_type: str = "llama", seed: int = 0, **config_values: object) -> Path:
    """Save a causal LM of two layers (hidden size 64) with a byte-level BPE tokenizer and a ChatML template.

    Args:
        folder: Created; takes config.json, safetensors and tokenizer files.
        model_type: A transformers model type with Llama's config field names: llama, qwen2, qwen3, mistral, gemma …
        config_values: Override fields of the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tiny_tokenizer()
    values: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config_values,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_tokenizer():
    """Return a byte-level BPE tokenizer of some 400 tokens with ChatML special tokens; any text survives the round trip."""
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe("user assistant system the a rank of an adapter is a number ", specials, 400),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=["<|endoftext|>"],
    )
    fast.chat_template = CHATML_TEMPLATE
    return fast


def train_bpe(text: str, specials: list[str], vocab_size: int):
    """Train a byte-level BPE tokenizer on a text; it merges across line ends and spaces, as real ones do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text * 20], trainer)
    return tokenizer
