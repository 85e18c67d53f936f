"""General text that no run here trains on: what a model unlearned shows in its loss on it."""

from importlib.resources import files

from engine.chat.contract import Value

# Longer ones are cut: byte-level tokenizers need a token for each byte, and some models have short contexts.
MAX_TOKENS = 256


class Passage(Value):
    """One short text."""

    kind: str  # such as "news", "dialogue" or "code"
    language: str  # of people (ISO 639-1) or of programs
    text: str


def general_text() -> tuple[Passage, ...]:
    """Return the passages, always the same in the same order: written for Loratory, two poems in the public domain."""
    lines = files("engine.evaluation").joinpath("general_text.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Passage.model_validate_json(line) for line in lines)
