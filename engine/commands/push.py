"""`loratory push`: put a run's result on the Hugging Face Hub, as an adapter or as a complete model."""

from typing import Annotated

import typer

from engine.commands.chat import find_target, with_choices
from engine.commands.output import ProgressLine, print_json, words_of_bytes
from engine.config.export import ExportDtype
from engine.config.push import PushConfig
from engine.export.contract import PushProgress, PushRequest, PushResult
from engine.paths import LoratoryHome, local_owner
from engine.runs.store import RunStore


def _help(field: str) -> str | None:
    return PushConfig.model_fields[field].description


def register(app: typer.Typer) -> None:
    """Add the command to the `loratory` program."""
    app.command("push")(push)


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a folder with an adapter.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="owner/name, or a name alone for your own account. Made if missing.")
    ],
    private: Annotated[bool, typer.Option("--private/--public", help=_help("private"))] = True,
    merged: Annotated[
        bool, typer.Option("--merged", help="A complete model, with the adapter worked in, instead of the adapter.")
    ] = False,
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint of the run, such as step-40.")] = None,
    model: Annotated[str | None, typer.Option(help="The base model, where the adapter's own is not here.")] = None,
    dtype: Annotated[ExportDtype, typer.Option(help=_help("dtype"))] = "auto",
    revision: Annotated[str | None, typer.Option(help=_help("revision"))] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help=_help("commit_message"))] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help=_help("verify"))] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Put a run's result on the Hugging Face Hub.

    The token comes from HF_TOKEN or from `hf auth login`, and is kept nowhere.
    """
    from engine.config.load import section_from_mapping
    from engine.export.push.job import PushJob

    values = {
        "kind": "merged" if merged else "adapter",
        "private": private,
        "dtype": dtype,
        "revision": revision,
        "commit_message": message,
        "verify": verify,
    }
    settings = section_from_mapping(PushConfig, values)
    home = LoratoryHome.from_environment()
    target = with_choices(find_target(run, RunStore(home, local_owner())), checkpoint, model)
    line = ProgressLine()
    try:
        request = PushRequest(target=target, repository=repository, settings=settings)
        result = PushJob(home, request).run(lambda progress: _show(line, progress))
    finally:
        line.clear()
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _report(result)


def _show(line: ProgressLine, progress: PushProgress) -> None:
    line.show(progress.message, progress.fraction)


def _report(result: PushResult) -> None:
    for file in result.files:
        typer.echo(f"{words_of_bytes(file.size_bytes):>10}  {file.name}")
    for note in result.notes:
        typer.echo(note)
    who = "private" if result.private else "public"
    typer.echo(f"{result.url} ({who}), commit {result.commit[:12]}, {words_of_bytes(result.sent_bytes)} sent")
