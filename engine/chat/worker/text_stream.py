"""Tokens into text while they arrive, never showing half a character."""

from collections.abc import Sequence
from typing import Protocol

_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that do not make a character, or do not yet


class Decoder(Protocol):
    """What is asked of a tokenizer here."""

    def decode(
        self,
        token_ids: Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str: ...


class TextStream:
    """Turns tokens into text piece by piece; all pieces joined are the text of all tokens decoded together.

    What a token adds depends on the one before it (SentencePiece puts the space there), so each piece is the difference
    between two decodings of a short window, as in Hugging Face's text-generation-inference.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._window_start = 0
        self._shown_until = 0

    def add(self, token: int) -> str:
        """Text that is certain now; empty while a character is incomplete."""
        self._tokens.append(token)
        piece = self._unshown()
        if not piece or piece.endswith(_INCOMPLETE):
            return ""
        self._window_start, self._shown_until = self._shown_until, len(self._tokens)
        return piece

    def finish(self) -> str:
        """What was held back, complete or not."""
        piece = self._unshown()
        self._window_start = self._shown_until = len(self._tokens)
        return piece

    def _unshown(self) -> str:
        shown = self._decode(self._tokens[self._window_start : self._shown_until])
        return self._decode(self._tokens[self._window_start :])[len(shown) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
