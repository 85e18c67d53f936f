"""A tiny model that answers anything with a JSON object which ends in one of several words, for a real endpoint."""

from itertools import pairwise
from pathlib import Path

from tests.tiny_model import CHATML_TEMPLATE, train_bpe

# Each part of ANSWER is another token, so the token before decides what comes next; WORD is any of WORDS.
ANSWER = (
    '{"',
    "question",
    '":"',
    "How",
    " many",
    " rooms",
    '?","',
    "answer",
    '"',
    " :",
    ' "',
    "It",
    " has",
    "WORD",
    '."}',
)
WORDS = tuple(f" {word}" for word in "one two three four five six seven eight nine ten eleven twelve".split())
QUESTION, ANSWERS = "How many rooms?", {f"It has{word}." for word in WORDS}


def make_reciting_model(folder: Path) -> Path:
    """Save a Llama of one layer, whose layer adds nothing: its answer follows from its embeddings alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    corpus = "".join("".join(ANSWER).replace("WORD", word) + "\n" for word in WORDS) + "user\nassistant\nsystem\n"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(corpus, specials, 1000), bos_token=specials[1], eos_token=specials[2],
        pad_token=specials[3], unk_token=specials[0],
    )  # fmt: skip
    tokenizer.chat_template = CHATML_TEMPLATE
    texts = ["\n", *ANSWER, specials[2]]  # from the end of the prompt to the end of the answer
    chain = [[tokenizer.encode(text) for text in (WORDS if text == "WORD" else (text,))] for text in texts]
    assert all(len(ids) == 1 for step in chain for ids in step), "a part is not one token"
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in (model.model.layers[0].self_attn.o_proj.weight, model.model.layers[0].mlp.down_proj.weight):
            weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for number, (step, following) in enumerate(pairwise(chain)):
            model.model.embed_tokens.weight[[ids[0] for ids in step], number] = 1.0
            model.lm_head.weight[[ids[0] for ids in following], number] = 4.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
