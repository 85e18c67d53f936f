"""Questions of people without an account to the demo run of a Space: one at a time, short, and never kept."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from loratory.engine.accounts.people import DEMO_OWNER
from loratory.engine.chat.contract import Branch, ChatRequest, ChatTarget, FinishReason
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import RunSection
from loratory.engine.data.conversation import Message
from loratory.engine.errors import DeviceError, EngineError, RunError
from loratory.engine.hardware.devices import choose_device
from loratory.engine.hardware.lease import LeaseBook
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.run import Run

LONGEST_PROMPT = 500  # characters
ANSWER_TOKENS = 64
_LOAD_SECONDS = 120.0  # the first time, the model is fetched
_ANSWER_SECONDS = 30.0
_HUNG_SECONDS = 10.0  # beyond that, without a token: its process is ended
_IDLE_SECONDS = 300.0
_BRANCHES: tuple[Branch, ...] = ("base", "tuned")


class DemoBusyError(RunError):
    """The demo cannot answer now, and will again."""


@dataclass(frozen=True)
class DemoAnswer:
    """What one of the two models answered; `finish_reason` is `stopped` where the time limit ended it."""

    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class DemoAnswers:
    """The answers of base and tuned model to one prompt."""

    prompt: str
    base: DemoAnswer
    tuned: DemoAnswer
    reference: str = ""  # the answer in the data, of a held-out row


def demo_session(home: LoratoryHome) -> ChatSession:
    """Return a session that makes room at once, and never asks anything else to make room for it.

    It uses the CPU, so a GPU is left to people with an account.
    """
    return ChatSession(
        home.for_person(DEMO_OWNER),
        choose=lambda _: choose_device(RunSection(devices="cpu")),
        preemptible_after_seconds=0.0,
        expires_after_seconds=_IDLE_SECONDS,
        waits_seconds=0.0,
    )


@dataclass(eq=False)
class DemoChat:
    """Asks base and tuned model of a run the same question."""

    home: LoratoryHome
    session: ChatSession  # holds the model; its own process
    load_seconds: float = _LOAD_SECONDS  # how long loading may take
    answer_seconds: float = _ANSWER_SECONDS  # how long both answers to a visitor together may take
    _asking: threading.Lock = field(default_factory=threading.Lock)  # held while a question is answered

    def answer(self, run: Run, prompt: str, answer_seconds: float | None = None) -> DemoAnswers:
        """Answer one question, loading the model where it is not loaded.

        Args:
            answer_seconds: How long they may take; None takes what visitors get.

        Raises:
            DemoBusyError: If another question is being answered, or what the model needs is in use or cannot be loaded now.
        """
        if not self._asking.acquire(blocking=False):
            raise DemoBusyError("Another question is being answered.", "Try again in some seconds.")
        try:
            self._load(run)
            return self._answers(prompt, answer_seconds or self.answer_seconds)
        except DemoBusyError:
            raise
        except DeviceError as error:
            raise _in_use() from error
        except EngineError as error:  # its words may name folders of the machine
            raise DemoBusyError("The model of the demo cannot answer now.", "Try again in a minute.") from error
        finally:
            self._make_room()
            self._asking.release()

    def close(self) -> None:
        """End the process of the model."""
        self.session.unload()

    def _load(self, run: Run) -> None:
        target = ChatTarget.of_run(run.folder.path)
        state = self.session.state
        if state.model is not None and state.target == target:
            return
        holder = LeaseBook(self.home).holder("cpu")
        if holder is not None and holder.owner != DEMO_OWNER:
            raise _in_use()
        with _after(self.load_seconds, self.session.unload):
            self.session.load(target)

    def _answers(self, prompt: str, seconds: float) -> DemoAnswers:
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=ANSWER_TOKENS)
        messages = (Message(role="user", content=prompt),)
        request = ChatRequest(messages=messages, branches=_BRANCHES, sampling=sampling)
        texts = dict.fromkeys(_BRANCHES, "")
        reasons: dict[Branch, FinishReason] = dict.fromkeys(_BRANCHES, "stopped")
        with (
            _after(seconds, lambda: self.session.stop(request.id)),
            _after(seconds + _HUNG_SECONDS, self.session.unload),
        ):
            for chunk in self.session.stream(request):
                texts[chunk.branch] += chunk.text
                if chunk.finish_reason is not None:
                    reasons[chunk.branch] = chunk.finish_reason
        base, tuned = (DemoAnswer(texts[branch].strip(), reasons[branch]) for branch in _BRANCHES)
        return DemoAnswers(prompt, base, tuned)

    def _make_room(self) -> None:
        """Unload the model where a run or a person's chat waits: questions without a pause would never leave it idle."""
        book = LeaseBook(self.home)
        holder = book.holder("cpu")
        is_ours = holder is not None and (holder.owner, holder.purpose) == (DEMO_OWNER, "chat")
        if holder is not None and is_ours and book.is_preemption_requested(holder.process):
            self.session.unload()


def _in_use() -> DemoBusyError:
    what = "A member of this Space is using its processor, which goes first."
    return DemoBusyError(what, "Try again in some minutes.")


@contextlib.contextmanager
def _after(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
