"""General text that no run trains on; a higher loss on it shows forgetting."""

from importlib.resources import files

from engine.chat.contract import Value
from engine.data.render.template import ChatTokenizer
from engine.data.render.tokenize import TokenizedRow

# Longer passages are truncated: byte-level tokenizers need a token for each byte, and some models have short contexts.
MAX_TOKENS = 256


class Passage(Value):
    """One short text."""

    kind: str  # such as "news", "dialogue" or "code"
    language: str  # of people (ISO 639-1) or of programs
    text: str


def general_text() -> tuple[Passage, ...]:
    """Return the passages in a fixed order; written for Loratory, except for two poems in the public domain."""
    lines = files("engine.evaluation").joinpath("general_text.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Passage.model_validate_json(line) for line in lines)


def general_rows(tokenizer: ChatTokenizer) -> list[TokenizedRow]:
    """Tokenize the passages as plain text: with the tokenizer's bos, without a chat template, every token predicted."""
    ids = [tokenizer(passage.text)["input_ids"][:MAX_TOKENS] for passage in general_text()]
    return [TokenizedRow(row, 0, tokens, tokens) for row, tokens in enumerate(ids)]
