"""What this room asks of a tokenizer; those of transformers have it all, and a test may bring its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Same:
    """A tokenizer as a key of caches: the same object, with the same special tokens and the same template."""

    tokenizer: ChatTokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def _identity(self) -> tuple[object, ...]:
        known = self.tokenizer
        return id(known), known.eos_token, known.pad_token, known.bos_token, known.chat_template


def control_token_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """Tokens that no ordinary text produces: special ones, and added ones that are more than white space."""
    return _control_token_ids(Same(tokenizer))


def control_token_texts(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """The control tokens as they are written in text."""
    return _control_token_texts(Same(tokenizer))


def control_token_pattern(tokenizer: ChatTokenizer) -> re.Pattern[str]:
    """Finds a control token in text."""
    return _control_token_pattern(Same(tokenizer))


@lru_cache(maxsize=16)
def _control_token_ids(same: Same) -> frozenset[int]:
    added = (token_id for token_id, token in same.tokenizer.added_tokens_decoder.items() if str(token).strip())
    return frozenset([*same.tokenizer.all_special_ids, *added])


@lru_cache(maxsize=16)
def _control_token_texts(same: Same) -> tuple[str, ...]:
    return tuple(same.tokenizer.convert_ids_to_tokens(sorted(_control_token_ids(same))))


@lru_cache(maxsize=16)
def _control_token_pattern(same: Same) -> re.Pattern[str]:
    longest_first = sorted(_control_token_texts(same), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
