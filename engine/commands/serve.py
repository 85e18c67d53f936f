"""`loratory serve` and `ui`: an OpenAI-compatible endpoint for any client, and the page."""

import importlib
import sys
from typing import Annotated

import typer

from engine.chat.contract import ChatTarget
from engine.chat.session import ChatSession
from engine.chat.target import plan_load
from engine.commands.chat import QuantizationName, TargetName, choose_target, show_loading
from engine.commands.output import BaseModelName, CheckpointName, ProgressLine, own_runs, print_json
from engine.errors import RunError


def serve(
    run: TargetName,
    host: Annotated[str, typer.Option("--host", help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes any that is free.")] = 8000,
    checkpoint: CheckpointName = None,
    base: Annotated[bool, typer.Option("--base", help="Serve the base alone, without what was trained.")] = False,
    model: BaseModelName = None,
    quantization: QuantizationName = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout once clients may come, nothing else.")
    ] = False,
) -> None:
    """Serve a run to any OpenAI client, with its base model under the name `base`.

    Ctrl-C ends it and frees the device. An idle model makes room for a run that waits; in a lab it is also unloaded after the
    idle time that the admin set. The next request loads it again.
    """
    from engine.serve.endpoint import Listening, serve_model
    from engine.serve.model import ServedModel

    store = own_runs()
    target = choose_target(run, store, checkpoint, model, quantization)
    plan = plan_load(target)
    if base and target.tuned is None:
        raise RunError("A model is its own base.", "Leave --base out.")
    if base:
        target = ChatTarget.of_model(plan.model)
    name, aliases = _names(target, plan.tuned.name if plan.tuned is not None else "")

    def unloaded(reason: str) -> None:
        sys.stderr.write(f"{reason} The next request loads it again.\n")
        sys.stderr.flush()

    served = ServedModel(ChatSession(store.home, on_unload=unloaded), target, name, aliases)

    def load() -> None:
        with ProgressLine() as line:
            served.load(lambda progress: show_loading(line, progress))

    def listening(where: Listening) -> None:
        if as_json:
            print_json({"url": where.url, "models": where.models})
        else:
            sys.stderr.write(f"{where.url} answers as {' and '.join(where.models)}. Ctrl-C ends it.\n")
            sys.stderr.flush()

    serve_model(served, host, port, listening, load)


def _names(target: ChatTarget, title: str) -> tuple[str, tuple[str, ...]]:
    """What clients call it: a run by its id, its title or `tuned`; a model by its name."""
    if target.tuned is not None:
        return target.tuned.folder.name, (title, "tuned")
    assert target.model is not None
    return target.model.shown_name, ()


def ui(context: typer.Context) -> None:
    """Open the Loratory page in a browser, or serve it to a lab; `loratory ui --help` lists the options."""
    # The engine must not import the page, so it is found by name when it is asked for; it parses its own options.
    raise typer.Exit(importlib.import_module("app").main(context.args))


COMMANDS = (serve,)
PASSED_ON = (ui,)
