"""General text that no run trains on; a higher loss on it shows forgetting."""

import json
from importlib.resources import files

from loratory.engine.data.render.template import ChatTokenizer
from loratory.engine.data.render.tokenize import TokenizedRow

# Longer passages are truncated: byte-level tokenizers need a token for each byte, and some models have short contexts.
MAX_TOKENS = 256


def general_text() -> tuple[dict[str, str], ...]:
    """Return passages, with their kind and language; written for Loratory, except for two poems in the public domain."""
    lines = files("loratory.engine.evaluation").joinpath("general_text.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(map(json.loads, lines))


def general_rows(tokenizer: ChatTokenizer) -> list[TokenizedRow]:
    """Tokenize the passages as plain text: with the tokenizer's bos, without a chat template, every token predicted."""
    ids = [tokenizer(passage["text"])["input_ids"][:MAX_TOKENS] for passage in general_text()]
    return [TokenizedRow(row, 0, tokens, tokens) for row, tokens in enumerate(ids)]
