"""`loratory chat`: one question with --prompt, or a conversation in the terminal."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TextIO

import typer

from engine.chat.contract import (
    AdapterChoice,
    Branch,
    ChatChunk,
    ChatRequest,
    ChatTarget,
    LoadedModel,
    LoadProgress,
    PromptView,
)
from engine.commands.configs import named_path
from engine.commands.output import AsJson, BaseModelName, CheckpointName, ProgressLine, print_json
from engine.config.results import SamplingConfig
from engine.config.run import ModelConfig, Quantization
from engine.data.conversation import Message
from engine.errors import EngineError, RunError, StorageError
from engine.files import write_atomically
from engine.paths import LoratoryHome, local_owner
from engine.runs.store import RunStore

if TYPE_CHECKING:
    from engine.chat.session import ChatSession
    from engine.data.conversation import Message


def _sampling_option(field: str, *names: str) -> Any:
    """An option that shows the help text of its setting; the setting's own default and bounds hold."""
    return typer.Option(*names, help=SamplingConfig.model_fields[field].description)


def register(app: typer.Typer) -> None:
    """Add the command to the `loratory` program."""
    app.command("chat")(chat)


def chat(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's id, a folder with an adapter or a model, or a model's name.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Ask this once; without it a conversation begins.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Let the base answer, with the adapter switched off.")] = False,
    checkpoint: CheckpointName = None,
    model: BaseModelName = None,
    quantization: Annotated[
        Quantization | None, typer.Option(help="none, nf4, fp4 or int8; as the run was trained unless given.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    temperature: Annotated[float | None, _sampling_option("temperature", "--temperature")] = None,
    top_p: Annotated[float | None, _sampling_option("top_p", "--top-p")] = None,
    top_k: Annotated[int | None, _sampling_option("top_k", "--top-k")] = None,
    repetition_penalty: Annotated[float | None, _sampling_option("repetition_penalty", "--repetition-penalty")] = None,
    max_tokens: Annotated[int | None, _sampling_option("max_new_tokens", "--max-tokens")] = None,
    seed: Annotated[int | None, _sampling_option("seed", "--seed")] = None,
    as_json: AsJson = False,
) -> None:
    """Talk to a run, an adapter or a model."""
    if as_json and prompt is None:
        raise typer.BadParameter("--json answers one question; give it with --prompt.")
    sampling = read_sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_tokens,
        seed=seed,
    )
    home = LoratoryHome.from_environment()
    target = find_target(run, RunStore(home, local_owner())).model_copy(update={"quantization": quantization})
    target = with_choices(target, checkpoint, model)

    from engine.chat.session import ChatSession
    from engine.commands.chat import TerminalConversation
    from engine.data.conversation import Message

    opening = (Message("system", system),) if system else ()
    session = ChatSession(home)
    line = ProgressLine()
    try:
        loaded = session.load(target, lambda progress: _show(line, progress))
        line.clear()
        branch: Branch = "base" if base or "tuned" not in loaded.branches else "tuned"
        if prompt is None:
            TerminalConversation(session, loaded, opening, sampling, branch).run()
            return
        _answer_once(session, (*opening, Message("user", prompt)), branch, sampling, as_json=as_json)
    finally:
        line.clear()
        session.unload()


def read_sampling(**given: float | int | None) -> SamplingConfig:
    """The sampling settings, with the defaults for what was not given.

    Raises:
        ConfigError: If a value is out of its bounds; lists every problem.
    """
    from engine.config.load import section_from_mapping

    values = {name: value for name, value in given.items() if value is not None}
    return section_from_mapping(SamplingConfig, values)


def find_target(text: str, store: RunStore) -> ChatTarget:
    """What RUN names: a folder that exists, a run of this owner, or a model.

    Raises:
        RunError: If it is none of them.
        StorageError: If no folder can have that name.
    """
    folder = named_path(text)
    if folder.is_dir():
        is_trained = (folder / "adapter_config.json").is_file() or (folder / "config.yaml").is_file()
        folder = folder.resolve()
        return ChatTarget.of_run(folder) if is_trained else ChatTarget.of_model(ModelConfig(id=str(folder)))
    try:
        return ChatTarget.of_run(store.get(text).folder.path)
    except RunError as error:
        from engine.models.catalog import find_in_catalog

        if find_in_catalog(text) is not None or "/" in text or folder.suffix.lower() == ".gguf":
            return ChatTarget.of_model(ModelConfig(id=text))
        raise RunError(error.what, "List the runs with `loratory runs`, or name a model or a folder.") from error


def with_choices(target: ChatTarget, checkpoint: str | None, model: str | None) -> ChatTarget:
    """The target at a checkpoint, or on another base.

    Raises:
        RunError: If there is no run that could have the checkpoint.
    """
    if target.tuned is None and checkpoint is not None:
        raise RunError("A model has no checkpoints.", "Leave --checkpoint out, or name a run.")
    if target.tuned is not None and checkpoint is not None:
        chosen = AdapterChoice(folder=target.tuned.folder, checkpoint=checkpoint)
        target = target.model_copy(update={"tuned": chosen})
    if model is not None:
        target = target.model_copy(update={"model": ModelConfig(id=model)})
    return target


def _answer_once(
    session: "ChatSession", messages: "tuple[Message, ...]", branch: Branch, sampling: SamplingConfig, *, as_json: bool
) -> None:
    view = session.prompt(messages)
    pieces = []
    chunk = None
    for chunk in session.stream(ChatRequest(messages=messages, branches=(branch,), sampling=sampling)):
        pieces.append(chunk.text)
        if not as_json:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
    assert chunk is not None  # every answer ends with a chunk
    if not as_json:
        sys.stdout.write("\n")
        return
    print_json(
        {
            "prompt_ids": view.ids,
            "text": "".join(pieces),
            "tokens": chunk.tokens,
            "tokens_per_second": chunk.tokens_per_second,
            "first_token_seconds": chunk.first_token_seconds,
            "finish_reason": chunk.finish_reason,
            "branch": chunk.branch,
        }
    )


def _show(line: ProgressLine, progress: LoadProgress) -> None:
    if progress.phase != "ready":
        line.show(progress.message, progress.fraction)


HELP = """\
/base, /tuned, /both   who answers
/system TEXT           set the system prompt, or remove it
/again                 answer the last question again
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
            dialog = tuple(message for message in self._messages if message.role != "system")
            self._messages = ((Message("system", rest.strip()),) if rest.strip() else ()) + dialog
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
        """Let each branch answer in turn; the conversation continues with the answer of the last."""
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
