"""A conversation with one or more models: turns, streamed answers, prompts of rows, its file, and votes on answers."""

import contextlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from queue import SimpleQueue
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer
from pydantic.dataclasses import dataclass

from loratory.engine.chat.contract import Branch, ChatChunk, ChatRequest, FinishReason
from loratory.engine.chat.session import ChatSession
from loratory.engine.chat.zero_gpu import LONGEST_TOKEN, TOKEN_HEADER
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import MAX_SHOWN_CHARACTERS, PageRow
from loratory.engine.data.conversation import IMAGE_MARK, ImageRef, Message
from loratory.engine.data.media.row_images import MAX_IMAGES
from loratory.engine.data.media.store import MediaStore
from loratory.engine.errors import DatasetError, StorageError
from loratory.engine.evaluation.votes import AnswerModel
from loratory.engine.inspector.session import Inspector
from loratory.ui.backend.background import Cache

BRANCH_WORDS: dict[Branch, str] = {"base": "Base model", "tuned": "Tuned", "second": "The other run"}
LARGEST_FILE_BYTES = 4_000_000  # of a saved conversation

# The parts of a conversation's file.
_SAVED = ConfigDict(extra="forbid", validate_by_name=True, serialize_by_alias=True)


@dataclass(frozen=True, config=_SAVED)
class Answer:
    """The answer of one branch."""

    branch: Branch
    text: str = ""
    tokens: int = Field(default=0, ge=0)
    tokens_per_second: Annotated[float, PlainSerializer(lambda speed: round(speed, 2))] = 0.0
    prompt_tokens: int = Field(default=0, ge=0)
    done: bool = False
    finish_reason: FinishReason | None = None
    note: str = Field(default="", exclude=True)

    def with_chunk(self, chunk: ChatChunk) -> "Answer":
        """Return the answer with a chunk appended."""
        return Answer(**{**chunk.model_dump(exclude={"first_token_seconds"}), "text": self.text + chunk.text})


@dataclass(frozen=True, config=_SAVED)
class QuestionSettings:
    """Models, sampling and system prompt of a question, for votes on its answers."""

    models: Mapping[Branch, AnswerModel]
    sampling: SamplingConfig
    system: str = ""
    left_out: tuple[int, ...] = ()  # numbers of earlier turns that are not in the context of the answers
    is_alone: bool = False  # of a prompt set: without a context, and in that of no later turn


@dataclass(frozen=True, config=_SAVED)
class Turn:
    """A question and its answers."""

    question: str  # with the marks of its images where a row had them; without marks they come first
    answers: tuple[Answer, ...] = ()
    reference: str = ""  # reference answer, where the question comes from a row
    # Without them, its answers cannot be voted for.
    settings: QuestionSettings | None = Field(default=None, alias="asked")
    # The other versions of the conversation from here to their ends, and where among them this one belongs.
    others: "tuple[Annotated[tuple[Turn, ...], Field(min_length=1)], ...]" = ()
    version: int = Field(default=0, ge=0)
    images: Annotated[tuple[ImageRef, ...], Field(max_length=MAX_IMAGES)] = ()  # in the media store

    def with_chunk(self, chunk: ChatChunk) -> "Turn":
        """Return the turn with a chunk appended to one answer."""
        answers = (answer.with_chunk(chunk) if answer.branch == chunk.branch else answer for answer in self.answers)
        return replace(self, answers=tuple(answers))

    def names(self, defaults: Mapping[Branch, str]) -> dict[Branch, str]:
        """Return the names of the branches when it was asked, else the `defaults`; another run may be loaded by now."""
        models = self.settings.models if self.settings is not None else {}
        return {**defaults, **{branch: model.name for branch, model in models.items()}}

    @property
    def models(self) -> tuple[AnswerModel, ...]:
        """The models that answered, as far as they are known."""
        models = self.settings.models if self.settings is not None else {}
        return tuple(models[answer.branch] for answer in self.answers if answer.branch in models)

    def end(self) -> "Turn":
        """Return the turn after its last chunk; unfinished answers are marked as stopped."""
        answers = (
            a if a.done else replace(a, done=True, finish_reason=a.finish_reason or "stopped") for a in self.answers
        )
        return replace(self, answers=tuple(answers))


def without_marks(text: str) -> str:
    """Return a question without the marks of its images."""
    return text.replace(IMAGE_MARK, "").strip()


def question_message(question: str, images: Sequence[ImageRef]) -> Message:
    """Return the turn that asks a question, with its images where it has their marks, else before the text."""
    if question.count(IMAGE_MARK) != len(images):
        question = IMAGE_MARK * len(images) + without_marks(question)
    return Message("user", question, images=tuple(images))


def with_images(row: "RowPrompt | None", images: Sequence[ImageRef]) -> "RowPrompt | None":
    """Return a row prompt with these images; one without a text where images alone were added."""
    row = row or (RowPrompt(-1, "", "") if images else None)
    return row._replace(images=tuple(images)) if row is not None else None


def thumbnail(store: MediaStore, ref: ImageRef) -> str:
    """Return a stored image as a data: URL of at most 160 pixels an edge; empty where the store does not have it."""
    with contextlib.suppress(StorageError):  # its file was deleted or damaged
        return _thumbnail(store, ref) if store.find(ref.digest) == ref else ""
    return ""


@lru_cache(maxsize=256)  # of 10 kB each
def _thumbnail(store: MediaStore, ref: ImageRef) -> str:
    return store.picture(ref, edge=160)


def versions_of(turns: Sequence[Turn], number: int) -> tuple[tuple[Turn, ...], ...]:
    """Return all versions of a conversation from a turn on, in order; none after its last turn."""
    if number >= len(turns):
        return ()
    turn = turns[number]
    current = (replace(turn, others=(), version=0), *turns[number + 1 :])
    return (*turn.others[: turn.version], current, *turn.others[turn.version :])


def with_version(turns: Sequence[Turn], number: int, version: int) -> list[Turn]:
    """Return the conversation with another of the versions from a turn on."""
    versions = versions_of(turns, number)
    first, *rest = versions[version]
    others = (*versions[:version], *versions[version + 1 :])
    return [*turns[:number], replace(first, others=others, version=version), *rest]


def turns_to_leave_out(
    turns: Sequence[Turn], branches: Sequence[Branch], models: Mapping[Branch, AnswerModel]
) -> tuple[int, ...]:
    """Return the turns of prompt sets, and those that not all of these models answered: all read the same questions."""
    return tuple(
        number
        for number, turn in enumerate(turns)
        if not all(_has_answer(turn, branch, models.get(branch)) for branch in branches)
    )


def _has_answer(turn: Turn, branch: Branch, model: AnswerModel | None) -> bool:
    is_alone = turn.settings is not None and turn.settings.is_alone
    if is_alone or not any(answer.branch == branch and answer.done and answer.text for answer in turn.answers):
        return False
    author = turn.settings.models.get(branch) if turn.settings is not None else None
    return author is None or model is None or author.has_weights_of(model)


def in_context(turns: Sequence[Turn]) -> list[Turn]:
    """Return the last turn after the earlier ones that its models read."""
    settings = turns[-1].settings if turns else None
    if settings is not None and settings.is_alone:
        return [turns[-1]]
    return [turn for number, turn in enumerate(turns) if settings is None or number not in settings.left_out]


def messages_of(turns: Sequence[Turn], branch: Branch, system: str) -> tuple[Message, ...]:
    """Return one branch's conversation in the context of the last turn, with its own answers."""
    messages = [Message("system", system.strip())] if system.strip() else []
    for turn in in_context(turns):
        answer = next((answer for answer in turn.answers if answer.branch == branch), None)
        messages.append(question_message(turn.question, turn.images))
        if answer is not None and answer.done and answer.text:
            messages.append(Message("assistant", answer.text))
        elif turn is not turns[-1]:
            messages.pop()  # a question that this branch never answered would leave two user turns in a row
    return tuple(messages)


class SavedConversation(BaseModel, frozen=True, extra="forbid", serialize_by_alias=True):
    """A conversation as a file: Markdown to read, JSON to read and open again."""

    format: Literal["loratory conversation"] = "loratory conversation"
    model: str = ""  # description of the loaded model
    names: Mapping[Branch, str] = {}  # of the runs, for readers
    system: str = ""
    title: str = ""  # of the newest run that answered
    libraries: Mapping[str, str] = {}  # versions that were installed when it was saved
    turns: tuple[Turn, ...] = Field(default=(), max_length=10_000)

    @property
    def file_name(self) -> str:
        """The name of its files, without an ending."""
        return re.sub(r"[^\w.-]+", "-", f"{self.title or 'conversation'} chat").strip("-.")


def read_conversation(content: bytes) -> SavedConversation:
    """Return a saved conversation.

    Raises:
        DatasetError: If it is not one.
    """
    try:
        return SavedConversation.model_validate_json(content)
    except ValueError as error:
        raise DatasetError(
            f"That file is not a conversation saved by Loratory, or larger than {LARGEST_FILE_BYTES // 10**6} MB.",
            "Choose a .json file that was saved here.",
        ) from error


def as_markdown(conversation: SavedConversation) -> str:
    """Return the file to read: models, libraries and settings, then the shown version of the conversation."""
    names = {**BRANCH_WORDS, **conversation.names}
    lines = [f"# Conversation{f' with {conversation.title}' if conversation.title else ''}", ""]
    if conversation.model:
        lines += [f"With {conversation.model}.", ""]
    for model in dict.fromkeys(model for turn in conversation.turns for model in turn.models):
        run = f", run {model.run}, checkpoint {model.checkpoint or 'final'}" if model.run else ""
        lines.append(f"- {model.name}: {model.base}, quantization {model.quantization}{run}")
    lines += [f"- {name} {version}" for name, version in conversation.libraries.items()] + [""]
    if conversation.system:
        lines += ["**System prompt**", "", conversation.system, ""]
    for turn in conversation.turns:
        version = f" (version {turn.version + 1} of {len(turn.others) + 1})" if turn.others else ""
        lines += [f"## You{version}", ""]
        lines += [f"- Image {image.digest}, {image.width} × {image.height} pixels" for image in turn.images]
        lines += [*([""] if turn.images else []), without_marks(turn.question), ""]
        if turn.settings is not None:
            sampling = turn.settings.sampling.model_dump(exclude_none=True)
            lines += [f"*{', '.join(f'{name} {value}' for name, value in sampling.items())}*", ""]
        for answer in turn.answers:
            lines += [f"### {turn.names(names)[answer.branch]}", "", answer.text.strip(), ""]
        if turn.reference:
            lines += ["### Reference", "", turn.reference, ""]
    return "\n".join(lines)


M = TypeVar("M")


def run_streaming(work: Callable[[Callable[[M], None]], object]) -> Iterator[M]:
    """Run `work` in a thread and yield the messages that it sends.

    Raises:
        Exception: The exception of `work`.
    """
    messages: SimpleQueue[M | None] = SimpleQueue()
    pool = ThreadPoolExecutor(1, thread_name_prefix="streaming-work")
    outcome = pool.submit(work, messages.put)
    pool.shutdown(wait=False)
    outcome.add_done_callback(lambda _: messages.put(None))
    yield from iter(messages.get, None)
    outcome.result()


class AnswerStream:
    """Streams answers of a session, and knows which page has asked which."""

    def __init__(self, session: ChatSession) -> None:
        self._session = session
        self._requests: dict[str, list[str]] = {}  # ids under way, by page

    @contextlib.contextmanager
    def chunks(
        self, requests: Sequence[ChatRequest], page_id: str, headers: Mapping[str, str]
    ) -> Iterator[Iterator[ChatChunk]]:
        """Give the chunks of all requests as they come; from here on they can be stopped, and the end stops them.

        Args:
            headers: Of its request; on ZeroGPU, they identify the visitor whose GPU quota is used.
        """
        token = headers.get(TOKEN_HEADER, "")[:LONGEST_TOKEN]
        requests = [request.model_copy(update={"gpu_token": token}) for request in requests]
        self._requests[page_id] = [request.id for request in requests]

        def drain_all(send: Callable[[ChatChunk], None]) -> None:
            streams = [self._session.stream(request) for request in requests]
            with ThreadPoolExecutor(len(streams)) as pool:
                list(pool.map(lambda stream: deque(map(send, stream), maxlen=0), streams))

        try:
            yield run_streaming(drain_all)
        finally:
            self._requests.pop(page_id, None)
            for request in requests:
                self._session.stop(request.id)

    def is_busy(self, page_id: str) -> bool:
        """Return whether answers to this page are under way."""
        return page_id in self._requests

    def stop(self, page_id: str) -> None:
        """Stop the answers to this page."""
        for request_id in self._requests.get(page_id, ()):
            self._session.stop(request_id)


class RowPrompt(NamedTuple):
    """The first question of a row, and its answer."""

    row: int
    question: str
    reference: str
    system: str = ""
    held_out: bool = True
    is_alone: bool = False  # of a prompt set
    images: tuple[ImageRef, ...] = ()


class HeldOutPrompts:
    """Finds and caches a run's prompts."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._cache: Cache[tuple[RowPrompt, ...]] = Cache(8)

    def of_run(self, config: RunConfig) -> tuple[RowPrompt, ...]:
        """Return up to 200 prompts spread evenly over the held-out rows; without them, some of the training set.

        Raises:
            EngineError: If the data or the model's tokenizer can no longer be read.
        """
        key = config.model_dump_json(include={"dataset", "model", "training", "vision"})
        return self._cache.get(key, lambda: self._find(config))

    def _find(self, config: RunConfig) -> tuple[RowPrompt, ...]:
        length, seed, vision = config.training.max_length, config.training.seed, config.vision.pixels
        held_out = self._inspector.held_out(config.dataset, config.model, length, seed=seed, count=200, vision=vision)
        selection: dict[str, Any] = {"rows": held_out.rows} if held_out.rows else {"count": 40}
        page = self._inspector.preview(config.dataset, None, length, **selection)
        prompts = (row_prompt(row, held_out=bool(held_out.rows)) for row in page.rows)
        return tuple(prompt for prompt in prompts if prompt is not None)


def row_prompt(row: PageRow, *, held_out: bool = True) -> RowPrompt | None:
    """Return the first exchange of a conversation; None if it has none or was shortened."""
    if row.conversation is None or row.conversation.tools:
        return None
    messages = list(row.conversation.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    if len(messages) < 2 or (messages[0].role, messages[1].role) != ("user", "assistant"):
        return None
    question, reference = messages[0].content.strip(), messages[1].content.strip()
    whole = all(len(text) <= MAX_SHOWN_CHARACTERS for text in (system, question, reference))
    prompt = RowPrompt(row.row, question, reference, system, held_out, images=messages[0].images)
    return prompt if without_marks(question) and reference and whole else None
