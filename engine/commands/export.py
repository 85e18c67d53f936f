"""`loratory export`, `push` and `script`: a run as files, on the Hub, or as a Python script."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.chat.target import plan_load
from loratory.engine.commands import output
from loratory.engine.commands.train import print_runs, result_json
from loratory.engine.config.load import config_to_yaml, section_from_mapping
from loratory.engine.config.results import ExportConfig, MergeConfig, PushConfig
from loratory.engine.errors import EngineError, RunError, explain_os_errors
from loratory.engine.evaluation.job import EvaluationJob
from loratory.engine.export.compressed import predict_sizes
from loratory.engine.export.contract import ExportedFile, ExportRequest, ExportResult, PushRequest, save_record
from loratory.engine.export.job import ExportJob, ScriptJob
from loratory.engine.export.kinds import KINDS
from loratory.engine.export.merge import MergeJob, comparing_evaluations
from loratory.engine.export.push import PushJob
from loratory.engine.inspector.session import Inspector
from loratory.engine.interface.names import choose_target, load_config, named_path
from loratory.engine.models.source import find_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import size
from loratory.engine.runs.summary import summarize

TrainedName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a folder with an adapter.")]


@output.setting_options(ExportConfig, kind="--to")
def export(
    run: TrainedName,
    settings: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    checkpoint: output.CheckpointName = None,
    model: output.BaseModelName = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", help="A llama.cpp checkout whose converter writes the GGUF; its code is run."),
    ] = None,
    where: output.WorkWhere = "local",
    as_json: output.AsJson = False,
) -> None:
    """Export a run's result and verify it: as an adapter, a complete model, a GGUF file, or compressed for vLLM."""
    config = section_from_mapping(ExportConfig, settings)
    store = output.own_runs()
    target = choose_target(run, store, checkpoint, model).model_copy(update={"where": where})
    if KINDS[config.kind].precision:
        _announce_sizes(target, store.home)
    converter = named_path(llama_cpp) if llama_cpp is not None else None
    request = ExportRequest(target=target, folder=named_path(out), settings=config, llama_cpp=converter)
    result = output.with_progress(ExportJob(store.home, request).run)
    save_record(target, config.kind, result)
    if as_json:
        output.print_json(result)
    else:
        _report(result)
    if result.verified is not None and not result.verified.passed:
        fix = "Do not use it; export the adapter instead, and please report this."
        raise RunError(f"The export {result.verified.difference}.", fix)


def _announce_sizes(target: ChatTarget, home: LoratoryHome) -> None:
    """Print how large each precision will be, where the base is here; to stderr, before anything is written."""
    with contextlib.suppress(EngineError):
        model = plan_load(target, home).model
        folder = find_model(model, home)
        sizes = predict_sizes(folder, model.id) if folder is not None else {}
        if sizes:
            text = ", ".join(f"{name} {size(size_bytes)}" for name, size_bytes in sizes.items())
            typer.echo(f"Predicted sizes: {text}.", err=True)


def _report(result: ExportResult) -> None:
    _print_files(result.files, result.notes)
    verified = result.verified
    if verified is not None:
        allowed = verified.allowed_logit_difference
        reason = f", rounding explains {allowed:.3g}" if allowed is not None else ""
        typer.echo(
            f"Verified against the run: {verified.equal_answers} of {verified.prompts} greedy answers are the same; "
            f"logits differ by at most {verified.largest_logit_difference:.3g}{reason}."
        )
        if verified.perplexity is not None:
            typer.echo(f"Perplexity of run and file: {verified.perplexity.summary}.")
    typer.echo(str(result.path))


def _print_files(files: Sequence[ExportedFile], notes: Sequence[str]) -> None:
    for file in files:
        typer.echo(f"{size(file.size_bytes):>10}  {file.name}")
    for note in notes:
        typer.echo(note)


@output.setting_options(
    PushConfig,
    *("private", "dtype", "verify", "revision", "commit_message"),
    private="--private/--public",
    commit_message="--message -m",
)
def push(
    run: TrainedName,
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="owner/name, or a name alone for your own account. Made if missing.")
    ],
    settings: dict[str, Any],
    merged: Annotated[
        bool, typer.Option("--merged", help="A complete model with the adapter merged, instead of the adapter.")
    ] = False,
    checkpoint: output.CheckpointName = None,
    model: output.BaseModelName = None,
    as_json: output.AsJson = False,
) -> None:
    """Put a run's result on the Hugging Face Hub.

    The token comes from HF_TOKEN or from `hf auth login`, and is kept nowhere.
    """
    config = section_from_mapping(PushConfig, settings | {"kind": "merged" if merged else "adapter"})
    store = output.own_runs()
    target = choose_target(run, store, checkpoint, model)
    request = PushRequest(target=target, repository=repository, settings=config)
    result = output.with_progress(PushJob(store.home, request).run)
    save_record(target, "hub", result)
    if as_json:
        output.print_json(result)
    else:
        _print_files(result.files, result.notes)
        who = "private" if result.private else "public"
        typer.echo(f"{result.url} ({who}), commit {result.commit[:12]}")


def script(
    config: output.ConfigName,
    overrides: output.Overrides = None,
    out: Annotated[Path | None, typer.Option(help="A file to write instead of stdout; it must not exist.")] = None,
    exact: Annotated[
        Path | None,
        typer.Option(
            "--exact",
            metavar="FOLDER",
            help="A folder to write instead: train.py and the tokenized rows, which repeat the losses of the run.",
        ),
    ] = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="The complete configuration as YAML, which `loratory train` takes.")
    ] = False,
) -> None:
    """Print what a run does as a script on plain transformers, PEFT, TRL and datasets; its head lists what differs."""
    from loratory.engine.export.script.write import gather_script_facts, write_short_script

    store = output.own_runs()
    file_to_write, folder_to_write = (named_path(path) if path is not None else None for path in (out, exact))
    run_config = load_config(config, overrides, store.home)
    run = None
    if not overrides and not named_path(config).is_file():
        with contextlib.suppress(RunError):  # of a preset
            run = store.get(config).folder
    if folder_to_write is not None:
        run_folder = run.path if run is not None else None
        result = output.with_progress(ScriptJob(store.home, run_config, folder_to_write, run_folder).run)
        _print_files(result.files, result.notes)
        return
    text = config_to_yaml(run_config)
    if not as_yaml:
        facts = gather_script_facts(run_config, store.home, run)
        with contextlib.closing(Inspector(store.home)) as inspector:
            text = write_short_script(facts, inspector.row_form(run_config.dataset))
    if file_to_write is None:
        typer.echo(text, nl=False)
        return
    with (
        explain_os_errors(f"{out} cannot be written", "Choose a new file."),
        file_to_write.open("x", encoding="utf-8") as file,
    ):
        file.write(text)
    typer.echo(str(out))


@output.setting_options(MergeConfig)
def merge(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Ids of the runs; their adapters stay as they are.")
    ],
    settings: dict[str, Any],
    weights: Annotated[
        str, typer.Option("--weights", help="One for each run, with commas between them. Equal shares without it.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Of the new run.")] = "",
    tests: Annotated[
        bool, typer.Option("--tests/--no-tests", help="Whether parts and merge answer the test sets of all parts.")
    ] = True,
    as_json: output.AsJson = False,
) -> None:
    """Merge the LoRA adapters of several runs into a run of its own, and compare parts and merge on their test sets."""
    store, config = output.own_runs(), section_from_mapping(MergeConfig, settings)
    parts = [store.get(run) for run in runs]
    try:
        shares = [float(text) for text in weights.split(",")] if weights else [1 / len(parts)] * len(parts)
    except ValueError:
        raise typer.BadParameter(
            f"{weights!r} is not numbers with commas between them.", param_hint="--weights"
        ) from None
    merged = output.with_progress(MergeJob(store.home, store, parts, shares, config, name).run)
    runs_of_table = [merged, *parts]
    for _, request in comparing_evaluations(runs_of_table) if tests else ():
        output.with_progress(EvaluationJob(store.home, request).run)
    summaries = [summarize(run) for run in runs_of_table]
    if as_json:
        output.print_json(
            [result_json(run.folder.path, of_run, None) for run, of_run in zip(runs_of_table, summaries, strict=True)]
        )
    else:
        print_runs(summaries)
        print(f"Chat with it: loratory chat {merged.id}")


COMMANDS = (merge, export, push, script)
