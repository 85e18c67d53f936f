"""`loratory chat`, `serve`, `mcp` and `ui`: chat in the terminal, serve OpenAI clients or agents, open the page."""

import contextlib
import importlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from loratory.engine.accounts.access_tokens import SCOPES
from loratory.engine.chat.contract import Branch, ChatRequest, ChatTarget, JobProgress, LoadedModel
from loratory.engine.chat.session import ChatSession
from loratory.engine.chat.target import plan_load
from loratory.engine.commands import output
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import Quantization
from loratory.engine.data.conversation import Message
from loratory.engine.errors import EngineError, RunError, StorageError
from loratory.engine.files import write_atomically
from loratory.engine.interface.names import choose_target, named_path
from loratory.engine.interface.workspace import Workspace
from loratory.engine.supervision.supervisor import Supervisor

TargetName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, a folder with an adapter or a model, or a model's name.")
]
QuantizationName = Annotated[
    Quantization | None, typer.Option(help="none, nf4, fp4 or int8; as the run was trained unless given.")
]


@output.setting_options(SamplingConfig, max_new_tokens="--max-tokens")
def chat(
    run: TargetName,
    settings: dict[str, Any],
    prompt: Annotated[str | None, typer.Option(help="Ask this once; without it a conversation begins.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Use the base model, adapter disabled.")] = False,
    checkpoint: output.CheckpointName = None,
    model: output.BaseModelName = None,
    quantization: QuantizationName = None,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    where: output.WorkWhere = "local",
    as_json: output.AsJson = False,
) -> None:
    """Chat with a run, an adapter or a model."""
    if as_json and prompt is None:
        raise typer.BadParameter("--json answers one question; give it with --prompt.")
    sampling = section_from_mapping(SamplingConfig, settings)
    store = output.own_runs()
    target = choose_target(run, store, checkpoint, model, quantization).model_copy(update={"where": where})
    opening = (Message("system", system),) if system else ()
    session = ChatSession(store.home)
    try:
        with output.ProgressLine() as line:
            loaded = session.load(target, lambda progress: show_loading(line, progress))
        branch: Branch = "base" if base or "tuned" not in loaded.branches else "tuned"
        if prompt is None:
            TerminalConversation(session, loaded, opening, sampling, (branch,)).run()
        else:
            _answer_once(session, (*opening, Message("user", prompt)), branch, sampling, as_json=as_json)
    finally:
        session.unload()


def _answer_once(
    session: ChatSession, messages: tuple[Message, ...], branch: Branch, sampling: SamplingConfig, *, as_json: bool
) -> None:
    view = session.prompt(messages)
    chunks = []
    for chunk in session.stream(ChatRequest(messages=messages, branches=(branch,), sampling=sampling)):
        chunks.append(chunk)
        if not as_json:
            print(chunk.text, end="", flush=True)
    if not as_json:
        print()
        return
    facts = {"tokens", "tokens_per_second", "first_token_seconds", "finish_reason", "branch"}
    text = "".join(chunk.text for chunk in chunks)
    output.print_json({"prompt_ids": view.ids, "text": text, **chunks[-1].model_dump(include=facts)})


def show_loading(line: output.ProgressLine, progress: JobProgress) -> None:
    """Show how far a model is loaded."""
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


@dataclass(eq=False)
class TerminalConversation:
    """Reads lines, answers them."""

    partner: ChatSession  # that has loaded `model`
    model: LoadedModel
    messages: tuple[Message, ...]  # at first a system turn, or nothing
    sampling: SamplingConfig
    branches: tuple[Branch, ...]  # who answers
    read_line: Callable[[str], str] = input  # reads a line; raises EOFError at the end
    out: TextIO | None = None  # None: stdout

    def run(self) -> None:
        """Converse until the person leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives `input` a history and an editable line

        method = f" · {self.model.method}" if self.model.method else ""
        self._say(f"{self.model.name}{method} on {self.model.device}, {self.model.dtype}. /help lists the commands.")
        for note in self.model.notes:
            self._say(note)
        while True:
            try:
                line = self.read_line("› ").strip()
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
                self._answer((*self.messages, Message("user", line)))
        elif command == "/help":
            self._say(HELP)
        elif command in ("/base", "/tuned", "/both"):
            self._choose(("base", "tuned") if command == "/both" else (command[1:],))
        elif command == "/system":
            dialog = tuple(message for message in self.messages if message.role != "system")
            self.messages = ((Message("system", rest.strip()),) if rest.strip() else ()) + dialog
        elif command == "/again":
            self._again()
        elif command == "/prompt":
            view = self.partner.prompt(self.messages)
            self._say(f"{view.text}\n({len(view.ids):,} tokens)")
        elif command == "/new":
            self.messages = tuple(message for message in self.messages if message.role == "system")
        elif command == "/save":
            self._save(rest.strip())
        else:
            raise RunError(f"There is no command {command[:40]}.", "/help lists those that there are.")

    def _choose(self, branches: Sequence[str]) -> None:
        choices: list[Branch] = [branch for branch in self.model.branches if branch in branches]
        if len(choices) < len(branches):
            raise RunError(f"{self.model.name} is loaded without an adapter.", "Name a run to compare the two.")
        self.branches = tuple(choices)

    def _again(self) -> None:
        questions = [index for index, message in enumerate(self.messages) if message.role == "user"]
        if not questions:
            raise RunError("Nothing was asked yet.", "Write a question.")
        self._answer(self.messages[: questions[-1] + 1])

    def _answer(self, messages: tuple[Message, ...]) -> None:
        """Let each branch answer in turn; the conversation continues with the answer of the last."""
        answer = ""
        for branch in self.branches:
            if len(self.branches) > 1:
                self._say(f"[{branch}]")
            answer = self._stream(ChatRequest(messages=messages, branches=(branch,), sampling=self.sampling))
        self.messages = (*messages, Message("assistant", answer))

    def _stream(self, request: ChatRequest) -> str:
        pieces: list[str] = []
        ending = "stopped"
        # Closing the stream stops the answer.
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(self.partner.stream(request)) as stream:  # type: ignore[type-var]
            for chunk in stream:
                pieces.append(chunk.text)
                print(chunk.text, end="", file=self.out, flush=True)
                if chunk.done:
                    ending = f"{chunk.tokens:,} tokens, {chunk.tokens_per_second:.1f} per second"
        self._say(f"\n  ({ending})")
        return "".join(pieces)

    def _save(self, name: str) -> None:
        if not name:
            raise RunError("No file was named.", "Write /save and a name, such as talk.json.")
        path = named_path(name)
        if path.exists():
            raise StorageError(f"{path.name} exists already.", "Choose another name.")
        turns = [{"role": message.role, "content": message.content} for message in self.messages]
        write_atomically(path, json.dumps({"messages": turns}, ensure_ascii=False, indent=1) + "\n")
        self._say(f"Saved as {path.name}.")

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def serve(
    run: TargetName,
    host: Annotated[str, typer.Option("--host", help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes any that is free.")] = 8000,
    checkpoint: output.CheckpointName = None,
    base: Annotated[bool, typer.Option("--base", help="Serve the base alone, without what was trained.")] = False,
    model: output.BaseModelName = None,
    quantization: QuantizationName = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout once clients may come, nothing else.")
    ] = False,
) -> None:
    """Serve a run to any OpenAI client, with its base model under the name `base`.

    Ctrl-C ends it and frees the device. An idle model makes room for a run that waits; in a lab it is also unloaded after the
    idle time that the admin set. The next request loads it again.
    """
    from loratory.engine.data.media.store import MediaStore
    from loratory.engine.serve.endpoint import serve_model
    from loratory.engine.serve.model import ServedModel

    store = output.own_runs()
    target = choose_target(run, store, checkpoint, model, quantization)
    plan = plan_load(target)
    if base and target.tuned is None:
        raise RunError("A model is its own base.", "Leave --base out.")
    if base:
        target = ChatTarget.of_model(plan.model)
    name, aliases = _names(target, plan.tuned.name if plan.tuned is not None else "")

    def report_unload(reason: str) -> None:
        typer.echo(f"{reason} The next request loads it again.", err=True)

    images = tempfile.TemporaryDirectory(prefix="loratory-serve-", ignore_cleanup_errors=True)  # of requests
    media = Path(images.name)
    session = ChatSession(store.home, on_unload=report_unload, media=media)
    served_model = ServedModel(session, target, name, aliases, MediaStore(media))

    def load() -> None:
        with output.ProgressLine() as line:
            served_model.load(lambda progress: show_loading(line, progress))

    def listening(url: str, models: Sequence[str]) -> None:
        if as_json:
            output.print_json({"url": url, "models": models})
        else:
            typer.echo(f"{url} answers as {' and '.join(models)}. Ctrl-C ends it.", err=True)

    with images:
        serve_model(served_model, host, port, listening, load)


def _names(target: ChatTarget, title: str) -> tuple[str, tuple[str, ...]]:
    """Return what clients call it: a run by its id, its title or `tuned`; a model by its name."""
    if target.tuned is not None:
        return target.tuned.folder.name, (title, "tuned")
    assert target.model is not None
    return target.model.shown_name, ()


def ui(context: typer.Context) -> None:
    """Open the Loratory page in a browser, or serve it to a lab; `loratory ui --help` lists the options."""
    # The engine must not import the page, so it is found by name when it is asked for; it parses its own options.
    raise typer.Exit(importlib.import_module("loratory.app").main(context.args))


def mcp(
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Agents see and estimate; they start nothing.")
    ] = False,
) -> None:
    """Serve agents over the Model Context Protocol, on stdin and stdout, with your rights."""
    try:
        from loratory.engine.interface.agents import AgentAccess, AgentServer
    except ImportError as error:
        raise RunError("The SDK of the Model Context Protocol is not installed.", "Install loratory[mcp].") from error
    with Workspace.own() as workspace:
        access, supervisor = (
            AgentAccess(workspace, frozenset({"read"} if read_only else SCOPES)),
            Supervisor(workspace.home),
        )
        server = AgentServer(lambda _: access)
        supervisor.start()  # runs that agents start begin here, unless a server is open
        try:
            server.run("stdio")
        finally:
            supervisor.stop()
            server.close()


COMMANDS = (chat, serve, mcp)
PASSED_ON = (ui,)
