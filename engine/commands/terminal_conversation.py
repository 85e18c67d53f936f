"""A conversation in the terminal: turns, streaming, and a few commands that begin with a slash."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TextIO

from engine.chat.contract import Branch, ChatChunk, ChatRequest, LoadedModel, PromptView
from engine.commands.named_path import named_path
from engine.config.sampling import SamplingConfig
from engine.data.conversation import Message
from engine.errors import EngineError, RunError, StorageError
from engine.files import write_atomically

HELP = """\
/base, /tuned, /both   who answers
/system TEXT           set the system prompt, or take it away
/again                 answer the last question anew
/prompt                show exactly what the model reads
/new                   begin a new conversation
/save FILE             write the conversation as JSON
/quit                  leave; so does Ctrl-D
Ctrl-C stops an answer."""


class Partner(Protocol):
    """What is asked of a chat session here."""

    def stream(self, request: ChatRequest) -> Iterator[ChatChunk]: ...

    def prompt(self, messages: Sequence[Message]) -> PromptView: ...


class TerminalConversation:
    """Reads lines, answers them.

    Args:
        partner: A chat session with a loaded model.
        model: What it has loaded.
        opening: A system turn, or nothing.
        sampling: Settings of every answer.
        branch: Who answers at first.
        ask: Reads a line; raises EOFError at the end.
        out: Where answers go.
    """

    def __init__(
        self,
        partner: Partner,
        model: LoadedModel,
        opening: tuple[Message, ...],
        sampling: SamplingConfig,
        branch: Branch,
        *,
        ask: Callable[[str], str] = input,
        out: TextIO | None = None,
    ) -> None:
        self._partner = partner
        self._model = model
        self._messages = opening
        self._sampling = sampling
        self._branches: tuple[Branch, ...] = (branch,)
        self._ask = ask
        self._out = out or sys.stdout

    def run(self) -> None:
        """Converse until the person leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives `input` a history and an editable line

        method = f" · {self._model.method}" if self._model.method else ""
        self._say(f"{self._model.name}{method} on {self._model.device}, {self._model.dtype}. /help lists the commands.")
        for note in self._model.notes:
            self._say(note)
        while True:
            try:
                line = self._ask("› ").strip()
            except (EOFError, KeyboardInterrupt):
                self._say("")
                return
            if line == "/quit":
                return
            try:
                self._take(line)
            except EngineError as error:
                self._say(str(error))

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if not line.startswith("/"):
            if line:
                self._answer((*self._messages, Message("user", line)))
        elif command == "/help":
            self._say(HELP)
        elif command in ("/base", "/tuned", "/both"):
            self._choose(("base", "tuned") if command == "/both" else (command[1:],))
        elif command == "/system":
            others = tuple(message for message in self._messages if message.role != "system")
            self._messages = ((Message("system", rest.strip()),) if rest.strip() else ()) + others
        elif command == "/again":
            self._again()
        elif command == "/prompt":
            view = self._partner.prompt(self._messages)
            self._say(f"{view.text}\n({len(view.ids):,} tokens)")
        elif command == "/new":
            self._messages = tuple(message for message in self._messages if message.role == "system")
        elif command == "/save":
            self._save(rest.strip())
        else:
            raise RunError(f"There is no command {command[:40]}.", "/help lists those that there are.")

    def _choose(self, branches: Sequence[str]) -> None:
        known: list[Branch] = [branch for branch in self._model.branches if branch in branches]
        if len(known) < len(branches):
            raise RunError(f"{self._model.name} is loaded without an adapter.", "Name a run to compare the two.")
        self._branches = tuple(known)

    def _again(self) -> None:
        asked = [index for index, message in enumerate(self._messages) if message.role == "user"]
        if not asked:
            raise RunError("Nothing was asked yet.", "Write a question.")
        self._answer(self._messages[: asked[-1] + 1])

    def _answer(self, messages: tuple[Message, ...]) -> None:
        """Let each branch answer in turn; the conversation goes on with what the last of them said."""
        answer = ""
        for branch in self._branches:
            if len(self._branches) > 1:
                self._say(f"[{branch}]")
            answer = self._stream(ChatRequest(messages=messages, branches=(branch,), sampling=self._sampling))
        self._messages = (*messages, Message("assistant", answer))

    def _stream(self, request: ChatRequest) -> str:
        pieces: list[str] = []
        ending = "stopped"
        stream = self._partner.stream(request)
        try:
            for chunk in stream:
                pieces.append(chunk.text)
                self._write(chunk.text)
                if chunk.done:
                    ending = f"{chunk.tokens:,} tokens, {chunk.tokens_per_second:.1f} per second"
        except KeyboardInterrupt:
            pass  # leaving the loop closes the stream, and so stops the answer
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
        self._say(f"\n  ({ending})")
        return "".join(pieces)

    def _save(self, name: str) -> None:
        if not name:
            raise RunError("No file was named.", "Write /save and a name, such as talk.json.")
        path = named_path(name)
        if path.exists():
            raise StorageError(f"{path.name} exists already.", "Choose another name.")
        turns = [{"role": message.role, "content": message.content} for message in self._messages]
        write_atomically(path, json.dumps({"messages": turns}, ensure_ascii=False, indent=1) + "\n")
        self._say(f"Saved as {path.name}.")

    def _say(self, text: str) -> None:
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
