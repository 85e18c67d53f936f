"""General text that no run trains on; a higher loss on it shows forgetting."""

import json
from importlib.resources import files

from loratory.engine.data.render.template import ChatTokenizer
from loratory.engine.data.render.tokenize import TokenizedRow

# Longer passages are truncated: byte-level tokenizers need a token for each byte, and some models have short contexts.
MAX_TOKENS = 256

# What a base model continues, to write general text in its own words: kinds and languages as wide as the passages', and none
# of their content. Training on a model's own text holds what it knew.
# Source: Huang et al. 2024, "Mitigating Catastrophic Forgetting in LLMs with Self-Synthesized Rehearsal".
OPENINGS = (
    "The", "In", "A", "When", "Once upon a time", "According to", "Dear", "How to", "Question:", "What is", "I think",
    "Yesterday", "Scientists", "The government", "In mathematics,", "Let x", "Chapter 1", "Ingredients:", "Breaking news:",
    "Review:", "He said", "She", "My", "If you", "First,", "def ", "import ", "#include", "function ", "SELECT", "<html>",
    '{"', "$ ", "Der", "Die", "Le", "La", "El", "Il", "O", "De", "W", "В", "Это", "在", "我", "日本", "في", "यह", "Bir",
)  # fmt: skip
REPLAY_TOKENS = 128  # of a text that continues one
REPLAY_COPIES = 8  # texts for each


def general_text() -> tuple[dict[str, str], ...]:
    """Return passages, with their kind and language; written for Loratory, except for two poems in the public domain."""
    lines = files("loratory.engine.evaluation").joinpath("general_text.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(map(json.loads, lines))


def general_rows(tokenizer: ChatTokenizer) -> list[TokenizedRow]:
    """Tokenize the passages as plain text: with the tokenizer's bos, without a chat template, every token predicted."""
    ids = [tokenizer(passage["text"])["input_ids"][:MAX_TOKENS] for passage in general_text()]
    return [TokenizedRow(row, 0, tokens, tokens) for row, tokens in enumerate(ids)]
