"""A conversation with one or more models: the questions, and the answers beside each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from engine.chat.contract import Branch, ChatChunk, FinishReason
from engine.data.conversation import Message

BRANCH_WORDS: dict[Branch, str] = {"base": "Base model", "tuned": "Tuned", "second": "The other run"}
_ENDED: dict[FinishReason, str] = {
    "eos": "ended by itself",
    "length": "cut at the longest answer allowed",
    "context": "cut: the context is full",
    "stopped": "stopped",
}


@dataclass(frozen=True)
class Answer:
    """What one branch said."""

    branch: Branch
    text: str = ""
    tokens: int = 0
    tokens_per_second: float = 0.0
    prompt_tokens: int = 0
    done: bool = False
    finish_reason: FinishReason | None = None

    def with_chunk(self, chunk: ChatChunk) -> "Answer":
        """The answer, grown by what came."""
        return replace(
            self,
            text=self.text + chunk.text,
            tokens=chunk.tokens,
            tokens_per_second=chunk.tokens_per_second,
            prompt_tokens=chunk.prompt_tokens,
            done=chunk.done,
            finish_reason=chunk.finish_reason,
        )


@dataclass(frozen=True)
class Turn:
    """A question and its answers."""

    question: str
    answers: tuple[Answer, ...] = ()
    reference: str = ""  # the data's own answer, where the question comes from a row

    def answer_of(self, branch: Branch) -> Answer | None:
        """What `branch` said; None where it was not asked."""
        return next((answer for answer in self.answers if answer.branch == branch), None)

    def with_chunk(self, chunk: ChatChunk) -> "Turn":
        """The turn with one answer grown."""
        grown = (answer.with_chunk(chunk) if answer.branch == chunk.branch else answer for answer in self.answers)
        return replace(self, answers=tuple(grown))

    def ended(self) -> "Turn":
        """The turn when nothing more comes: answers that were cut off say so."""
        closed = (
            a if a.done else replace(a, done=True, finish_reason=a.finish_reason or "stopped") for a in self.answers
        )
        return replace(self, answers=tuple(closed))


def messages_of(turns: Sequence[Turn], branch: Branch, system: str) -> tuple[Message, ...]:
    """The conversation as one branch remembers it: its own answers, not the other's."""
    messages = [Message("system", system.strip())] if system.strip() else []
    for turn in turns:
        answer = turn.answer_of(branch)
        messages.append(Message("user", turn.question))
        if answer is not None and answer.done and answer.text:
            messages.append(Message("assistant", answer.text))
        elif turn is not turns[-1]:
            messages.pop()  # a question that this branch never answered would leave two user turns in a row
    return tuple(messages)


def render_transcript(
    turns: Sequence[Turn],
    names: Mapping[Branch, str] | None = None,
    context_tokens: int | None = None,
    *,
    can_edit: bool = False,
) -> str:
    """The whole conversation; "" before the first question.

    Args:
        turns: The conversation.
        names: What to call the branches, where not as usual.
        context_tokens: How much the model can hold, where it is known.
        can_edit: Offers to go back to a question; its `data-pick` is `edit:N`.
    """
    if not turns:
        return ""
    words = {**BRANCH_WORDS, **(names or {})}
    drawn = (_turn(turn, words, context_tokens, number if can_edit else None) for number, turn in enumerate(turns))
    return f'<div class="talk" role="log" aria-live="off">{"".join(drawn)}</div>'


def _turn(turn: Turn, words: Mapping[Branch, str], context_tokens: int | None, number: int | None) -> str:
    answers = "".join(_answer(answer, words[answer.branch], context_tokens) for answer in turn.answers)
    if turn.reference:
        answers += (
            f'<div class="answer reference"><h4>Reference</h4><div class="text">{escape(turn.reference)}</div>'
            '<p class="figures">as the data has it</p></div>'
        )
    edit = ""
    if number is not None:
        edit = f'<button type="button" class="edit" data-pick="edit:{number}" title="Ask from here anew">Edit</button>'
    return (
        f'<div class="question"><span>You{edit}</span>{escape(turn.question)}</div><div class="answers">{answers}</div>'
    )


def _answer(answer: Answer, name: str, context_tokens: int | None) -> str:
    writing = "" if answer.done else " writing"
    text = escape(answer.text) if answer.text or not answer.done else "<em>(it said nothing)</em>"
    return (
        f'<div class="answer {answer.branch}"><h4>{escape(name)}</h4><div class="text{writing}">{text}</div>'
        f'<p class="figures">{_figures(answer, context_tokens)}</p></div>'
    )


def _figures(answer: Answer, context_tokens: int | None) -> str:
    if not answer.tokens:
        return "reading the question …" if not answer.done else _ENDED.get(answer.finish_reason or "stopped", "")
    parts = [f"{answer.tokens:,} {'token' if answer.tokens == 1 else 'tokens'}"]
    if answer.tokens_per_second:
        parts.append(f"{answer.tokens_per_second:,.1f} tokens/s")
    if answer.done and answer.finish_reason is not None:
        parts.append(_ENDED[answer.finish_reason])
    if answer.done and answer.prompt_tokens:
        used = answer.prompt_tokens + answer.tokens
        parts.append(f"context {used:,} of {context_tokens:,}" if context_tokens else f"context {used:,} tokens")
    return " · ".join(parts)
