"""`loratory export`: take a run's result away, as an adapter or as a complete model, and verify it."""

from pathlib import Path
from typing import Annotated

import typer

from engine.chat.contract import AdapterChoice, ChatTarget
from engine.commands.named_path import named_path
from engine.commands.output import ProgressLine, print_json, words_of_bytes
from engine.config.export import ExportConfig, ExportDtype, ExportKind, GgufType
from engine.config.model import ModelConfig
from engine.errors import RunError
from engine.export.contract import ExportProgress, ExportRequest, ExportResult, Verification
from engine.paths import LoratoryHome, local_owner
from engine.runs.store import RunStore


def register(app: typer.Typer) -> None:
    """Add the command to the `loratory` program."""
    app.command("export")(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a folder with an adapter.")],
    kind: Annotated[ExportKind, typer.Option("--to", help=ExportConfig.model_fields["kind"].description)],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    checkpoint: Annotated[str | None, typer.Option(help="A checkpoint of the run, such as step-40.")] = None,
    model: Annotated[str | None, typer.Option(help="The base model, where the adapter's own is not here.")] = None,
    dtype: Annotated[ExportDtype, typer.Option(help=ExportConfig.model_fields["dtype"].description)] = "auto",
    gguf_type: Annotated[
        GgufType, typer.Option("--gguf-type", help=ExportConfig.model_fields["gguf_type"].description)
    ] = "auto",
    keep_merged: Annotated[
        bool, typer.Option("--keep-merged", help=ExportConfig.model_fields["keep_merged"].description)
    ] = False,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", help="A llama.cpp checkout whose converter writes the GGUF; its code is run."),
    ] = None,
    max_shard_gb: Annotated[
        float | None, typer.Option("--max-shard-gb", help=ExportConfig.model_fields["max_shard_gb"].description)
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help=ExportConfig.model_fields["verify"].description)
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")] = False,
) -> None:
    """Take a run's result away and verify it: as an adapter, a complete model, or a GGUF file."""
    from engine.config.load import section_from_mapping
    from engine.export.job import ExportJob

    values = {
        "kind": kind,
        "dtype": dtype,
        "gguf_type": gguf_type,
        "keep_merged": keep_merged,
        "verify": verify,
        "max_shard_gb": max_shard_gb,
    }
    settings = section_from_mapping(ExportConfig, {key: value for key, value in values.items() if value is not None})
    home = LoratoryHome.from_environment()
    request = ExportRequest(
        target=_target(run, checkpoint, model, RunStore(home, local_owner())),
        folder=named_path(out),
        settings=settings,
        llama_cpp=named_path(llama_cpp) if llama_cpp is not None else None,
    )
    line = ProgressLine()
    try:
        result = ExportJob(home, request).run(lambda progress: _show(line, progress))
    finally:
        line.clear()
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _report(result)
    if result.verified is not None and not result.verified.passed:
        raise RunError(
            _difference(result.verified),
            "Do not use it; export the adapter instead, and please report this.",
        )


def _difference(verified: Verification) -> str:
    """What is wrong with an export, in one sentence."""
    if verified.equal_prompts is not None and verified.equal_prompts < verified.prompts:
        return (
            f"What was written reads only {verified.equal_prompts} of {verified.prompts} prompts as the same tokens as "
            "the run."
        )
    if verified.needed_answers is not None and verified.equal_answers < verified.needed_answers:
        return (
            f"What was written gives {verified.equal_answers} of {verified.prompts} answers as the run does; "
            f"{verified.needed_answers} were expected."
        )
    return (
        f"What was written differs from the run by {verified.largest_logit_difference:.3g} in a logit; "
        f"rounding explains {verified.allowed_logit_difference:.3g}."
    )


def _target(text: str, checkpoint: str | None, model: str | None, store: RunStore) -> ChatTarget:
    folder = named_path(text)
    chosen = folder.resolve() if folder.is_dir() else store.get(text).folder.path
    base = ModelConfig(id=model) if model is not None else None
    return ChatTarget(model=base, tuned=AdapterChoice(folder=chosen, checkpoint=checkpoint))


def _show(line: ProgressLine, progress: ExportProgress) -> None:
    line.show(progress.message, progress.fraction)


def _report(result: ExportResult) -> None:
    for file in result.files:
        typer.echo(f"{words_of_bytes(file.size_bytes):>10}  {file.name}")
    for note in result.notes:
        typer.echo(note)
    verified = result.verified
    if verified is not None:
        typer.echo(
            f"Verified against the run: {verified.equal_answers} of {verified.prompts} greedy answers are the same; "
            f"logits differ by at most {verified.largest_logit_difference:.3g}, rounding explains "
            f"{verified.allowed_logit_difference:.3g}."
        )
    typer.echo(str(result.path))
