"""Text into token ids, with the characters that each token stands for."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from engine.data.tokenizer import ChatTokenizer, TokenizerState, control_token_ids

_REMEMBERED_CHARACTERS = 256  # what a template writes before an answer is short; whole prompts do not come twice


@dataclass
class Encoded:
    """A tokenized text: token i reaches from character `starts[i]` up to, not with, `ends[i]`."""

    text: str
    ids: list[int]
    starts: list[int]
    ends: list[int]

    def append(self, text: str, tokenizer: ChatTokenizer) -> None:
        """Add the tokens of `text`, tokenized as what follows other text and not as a beginning of its own."""
        marker = "\n"
        lead = len(tokenizer(marker, add_special_tokens=False)["input_ids"])
        following = encode(marker + text, tokenizer)
        shift = len(self.text) - len(marker)
        if following.starts[lead : lead + 1] != [len(marker)]:  # the marker melted into the text
            lead, shift, following = 0, len(self.text), encode(text, tokenizer)
        self.text += text
        self.ids.extend(following.ids[lead:])
        self.starts.extend(start + shift for start in following.starts[lead:])
        self.ends.extend(end + shift for end in following.ends[lead:])

    def boundary(self, character: int, tokenizer: ChatTokenizer) -> int | None:
        """Index of the token that begins at `character`, if the tokens before it are those of the text before it alone.

        None where a token reaches across, or where that text by itself would be split into other tokens.
        """
        first = bisect_left(self.starts, character)
        if first < len(self.starts) and self.starts[first] != character:
            return None
        if first and self.ends[first - 1] > character:
            return None
        # Control tokens split a text before anything else is merged, so it is enough to compare from the last one on.
        controls = control_token_ids(tokenizer)
        back = first
        while back > 0:
            back -= 1
            if self.ids[back] in controls:
                break
        begin = self.starts[back] if first else 0
        alone = _ids_alone(self.text[begin:character], tokenizer)
        return first if alone == tuple(self.ids[back:first]) else None

    def turn_end(self, first: int, after: int, tokenizer: ChatTokenizer) -> int | None:
        """Index after the control token that ends a turn whose tokens are `first` to `after`.

        White space that a template puts after it is not part of the turn. None if no control token ends it.
        """
        controls = control_token_ids(tokenizer)
        for end in range(after, first, -1):
            if self.ids[end - 1] in controls:
                return end
            if self.text[self.starts[end - 1] : self.ends[end - 1]].strip():
                return None
        return None

    def pieces(self) -> list[str]:
        """The text of each token, without overlap: of a character that several tokens spell, the first one gets it."""
        pieces = []
        position = 0
        for start, end in zip(self.starts, self.ends, strict=True):
            pieces.append(self.text[min(position, start) : end] if end > position else "")
            position = max(position, end)
        return pieces


def encode(text: str, tokenizer: ChatTokenizer, *, add_special_tokens: bool = False) -> Encoded:
    """Tokenize one text."""
    return encode_many([text], tokenizer, add_special_tokens=add_special_tokens)[0]


def encode_many(texts: Sequence[str], tokenizer: ChatTokenizer, *, add_special_tokens: bool = False) -> list[Encoded]:
    """Tokenize several texts at once, on all cores where the tokenizer can."""
    if not texts:
        return []
    encoding = tokenizer(list(texts), add_special_tokens=add_special_tokens, return_offsets_mapping=True)
    return [
        Encoded(text, list(ids), [start for start, _ in offsets], [end for _, end in offsets])
        for text, ids, offsets in zip(texts, encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]


def _ids_alone(text: str, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    if len(text) > _REMEMBERED_CHARACTERS:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return _short_ids_alone(TokenizerState(tokenizer), text)


@lru_cache(maxsize=4096)
def _short_ids_alone(state: TokenizerState, text: str) -> tuple[int, ...]:
    return tuple(state.tokenizer(text, add_special_tokens=False)["input_ids"])
