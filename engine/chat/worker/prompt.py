"""The prompt as training saw it, and the tokens that end an answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import GenerationConfig

from engine.chat.contract import PromptView
from engine.data.conversation import Conversation, Message
from engine.data.records import RowProblemError
from engine.data.render.sequence_plan import prompt_text
from engine.data.render.template import ChatTokenizer, rendering_confined, stop_token_ids
from engine.data.render.tokenize import prompt_ids
from engine.errors import ModelError
from engine.inspector.worker.load_tokenizer import load_tokenizer
from engine.models.source import ModelSource

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
        """Return text that is certain now; empty while a character is incomplete."""
        self._tokens.append(token)
        piece = self._unshown()
        if not piece or piece.endswith(_INCOMPLETE):
            return ""
        self._window_start, self._shown_until = self._shown_until, len(self._tokens)
        return piece

    def finish(self) -> str:
        """Return what was held back, complete or not."""
        piece = self._unshown()
        self._window_start = self._shown_until = len(self._tokens)
        return piece

    def _unshown(self) -> str:
        shown = self._decode(self._tokens[self._window_start : self._shown_until])
        return self._decode(self._tokens[self._window_start :])[len(shown) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


TOKENIZER_CONFIG = "tokenizer_config.json"


class TalkingTokenizer(Decoder, ChatTokenizer, Protocol):
    """A tokenizer that renders prompts and reads answers back."""


def load_chat_tokenizer(trained: Sequence[Path], base: Path, name: str) -> TalkingTokenizer:
    """Load the tokenizer with the template that training froze; where nothing was trained, freeze the base's own.

    Args:
        trained: Folders of trained weights, the most wanted first; the first with a tokenizer in it counts.
        base: Folder of the base model.
        name: Of the base, for messages.

    Raises:
        ModelError: If the tokenizer cannot be read.
    """
    folder = next((folder for folder in trained if (folder / TOKENIZER_CONFIG).is_file()), base)
    tokenizer: TalkingTokenizer
    tokenizer, _ = load_tokenizer(ModelSource(str(folder), name))
    return tokenizer


def render_prompt(messages: Sequence[Message], tools: Sequence[Any], tokenizer: ChatTokenizer) -> PromptView:
    """Turn a conversation into exactly what the model reads to answer it.

    Raises:
        ModelError: If the chat template refuses the conversation, or overruns.
    """
    try:
        with rendering_confined(sum(len(message.content) for message in messages)):
            text = prompt_text(Conversation(tuple(messages), tuple(tools)), tokenizer)
            ids = prompt_ids(messages, tokenizer, tools)
    except RowProblemError as error:
        raise ModelError(
            f"The model's chat template refuses this conversation: {error.problem}.",
            "Change the turn that it names, or leave the system prompt out.",
        ) from error
    return PromptView(text=text, ids=tuple(ids))


def end_token_ids(tokenizer: ChatTokenizer, generation: GenerationConfig | None) -> frozenset[int]:
    """Tokens that end an answer: those of the template that was trained on, and those that the model's makers name."""
    named = generation.eos_token_id if generation is not None else None
    made = named if isinstance(named, list) else [named]
    return frozenset([*stop_token_ids(tokenizer), *(token for token in made if token is not None)])
