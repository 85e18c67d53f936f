"""What rendering needs of a tokenizer, and text as token ids with the characters of each token."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol


class ChatTokenizer(Protocol):
    """The part of transformers' fast tokenizers that decides what a model sees.

    `freeze_template` (engine.data.render.template) prepares one; the loader calls it, and all processes use the same.
    """

    chat_template: Any  # Jinja text, or named texts
    eos_token: str | None
    eos_token_id: int | None
    bos_token: str | None
    bos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None

    @property
    def all_special_ids(self) -> list[int]: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def __len__(self) -> int: ...

    def get_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
    ) -> Any: ...

    def __call__(
        self, text: Any, *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> Mapping[str, Any]: ...

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class TokenizerState:
    """A tokenizer as a key of caches: equal for the same object with the same template, special and added tokens.

    It compares what those were when it was made, so a tokenizer that changed since does not find its former answers.
    """

    __slots__ = ("_key", "tokenizer")

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer  # kept: the id of an object that is gone may become another's
        template = tokenizer.chat_template
        settled = tuple(template.items()) if isinstance(template, Mapping) else template
        tokens = tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token, len(tokenizer)
        self._key = (id(tokenizer), settled, *tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerState) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def control_token_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """Return tokens that no ordinary text produces: special ones, and added ones that are more than white space."""
    return _control_token_ids(TokenizerState(tokenizer))


def control_token_texts(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """Return the control tokens as they are written in text."""
    return _control_token_texts(TokenizerState(tokenizer))


def control_token_pattern(tokenizer: ChatTokenizer) -> re.Pattern[str]:
    """Finds a control token in text."""
    return _control_token_pattern(TokenizerState(tokenizer))


@lru_cache(maxsize=16)
def _control_token_ids(state: TokenizerState) -> frozenset[int]:
    added = (token_id for token_id, token in state.tokenizer.added_tokens_decoder.items() if str(token).strip())
    return frozenset([*state.tokenizer.all_special_ids, *added])


@lru_cache(maxsize=16)
def _control_token_texts(state: TokenizerState) -> tuple[str, ...]:
    return tuple(state.tokenizer.convert_ids_to_tokens(sorted(_control_token_ids(state))))


@lru_cache(maxsize=16)
def _control_token_pattern(state: TokenizerState) -> re.Pattern[str]:
    longest_first = sorted(_control_token_texts(state), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


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
        """Return the token that begins at `character`, if those before it are the tokens of the text before it.

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
        """Return index after the control token that ends a turn whose tokens are `first` to `after`.

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
        """Return the text of each token; a character of several tokens belongs to the first of them."""
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
