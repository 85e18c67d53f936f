"""What this room asks of a tokenizer; those of transformers have it all, and a test may bring its own."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol


class ChatTokenizer(Protocol):
    """The part of transformers' fast tokenizers that decides what a model sees.

    `freeze_template` (engine.data.template) makes one ready; the loader does it, so that everybody works with the same.
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
    """Tokens that no ordinary text produces: special ones, and added ones that are more than white space."""
    return _control_token_ids(TokenizerState(tokenizer))


def control_token_texts(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """The control tokens as they are written in text."""
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
