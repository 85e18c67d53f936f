"""`loratory chat`: one question with --prompt, or a conversation in the terminal."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.chat.contract import AdapterChoice, Branch, ChatRequest, ChatTarget, LoadProgress
from engine.commands.named_path import named_path
from engine.commands.output import ProgressLine, print_json
from engine.config.model import ModelConfig, Quantization
from engine.config.sampling import SamplingConfig
from engine.errors import RunError
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
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint of the run, such as step-40.")] = None,
    model: Annotated[str | None, typer.Option(help="The base model, where the adapter's own is not here.")] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
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
    from engine.commands.terminal_conversation import TerminalConversation
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
