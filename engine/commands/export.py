"""`loratory export`, `push` and `script`: a run as files, on the Hub, or as a Python script."""

from pathlib import Path
from typing import Annotated

import typer

from engine.chat.contract import AdapterChoice, ChatTarget
from engine.commands.chat import find_target, with_choices
from engine.commands.configs import named_path
from engine.commands.output import (
    AsJson,
    BaseModelName,
    CheckpointName,
    ConfigName,
    Overrides,
    ProgressLine,
    print_json,
    words_of_bytes,
)
from engine.config.results import ExportConfig, ExportDtype, ExportKind, GgufType, PushConfig
from engine.config.run import ModelConfig
from engine.errors import RunError
from engine.export.contract import (
    ExportRequest,
    ExportResult,
    PushRequest,
    PushResult,
    Verification,
)
from engine.paths import LoratoryHome, local_owner
from engine.runs.store import RunStore


def _push_help(field: str) -> str | None:
    return PushConfig.model_fields[field].description


def register(app: typer.Typer) -> None:
    """Add the commands to the `loratory` program."""
    app.command("export")(export)
    app.command("push")(push)
    app.command("script")(script)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a folder with an adapter.")],
    kind: Annotated[ExportKind, typer.Option("--to", help=ExportConfig.model_fields["kind"].description)],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    checkpoint: CheckpointName = None,
    model: BaseModelName = None,
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
    as_json: AsJson = False,
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
        result = ExportJob(home, request).run(lambda progress: line.show(progress.message, progress.fraction))
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


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or a folder with an adapter.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="owner/name, or a name alone for your own account. Made if missing.")
    ],
    private: Annotated[bool, typer.Option("--private/--public", help=_push_help("private"))] = True,
    merged: Annotated[
        bool, typer.Option("--merged", help="A complete model, with the adapter worked in, instead of the adapter.")
    ] = False,
    checkpoint: CheckpointName = None,
    model: BaseModelName = None,
    dtype: Annotated[ExportDtype, typer.Option(help=_push_help("dtype"))] = "auto",
    revision: Annotated[str | None, typer.Option(help=_push_help("revision"))] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help=_push_help("commit_message"))] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help=_push_help("verify"))] = True,
    as_json: AsJson = False,
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
        result = PushJob(home, request).run(lambda progress: line.show(progress.message, progress.fraction))
    finally:
        line.clear()
    if as_json:
        print_json(result.model_dump(mode="json"))
    else:
        _report_push(result)


def _report_push(result: PushResult) -> None:
    for file in result.files:
        typer.echo(f"{words_of_bytes(file.size_bytes):>10}  {file.name}")
    for note in result.notes:
        typer.echo(note)
    who = "private" if result.private else "public"
    typer.echo(f"{result.url} ({who}), commit {result.commit[:12]}, {words_of_bytes(result.sent_bytes)} sent")


def script(
    config: ConfigName,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="A file to write instead of stdout; it must not exist.")] = None,
    short: Annotated[
        bool,
        typer.Option("--short", help="At most 70 lines in the shape of the usual tutorials; names what it leaves out."),
    ] = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="The complete configuration as YAML, which `loratory train` takes.")
    ] = False,
) -> None:
    """Print what a run does as a script on plain transformers, PEFT, TRL and datasets."""
    from engine.commands.configs import load_config_argument, named_path
    from engine.config.load import config_to_yaml
    from engine.errors import RunError, StorageError
    from engine.export.script.write import gather_script_facts, write_script, write_short_script
    from engine.runs.store import RunStore

    home = LoratoryHome.from_environment()
    file_to_write = named_path(out) if out is not None else None
    run_config = load_config_argument(config, tuple(overrides or ()), home)
    if as_yaml:
        text = config_to_yaml(run_config)
    else:
        run = None
        if not overrides and not named_path(config).is_file():
            try:
                run = RunStore(home, local_owner()).get(config).folder
            except RunError:
                run = None  # a preset
        if run is None and run_config.training.train_sampling_strategy == "group_by_length":
            _inspect(run_config.model, home)
        facts = gather_script_facts(run_config, home, run)
        text = write_short_script(facts) if short else write_script(facts)
    if file_to_write is None:
        typer.echo(text, nl=False)
        return
    try:
        with file_to_write.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise StorageError(f"{out} cannot be written ({error.strerror}).", "Choose a new file.") from error
    typer.echo(str(out))


def _inspect(model: ModelConfig, home: LoratoryHome) -> None:
    """Find out how the model's attention works, by which rows are batched; a script is written without it as well."""
    from engine.errors import EngineError
    from engine.inspector.session import Inspector

    inspector = Inspector(home)
    try:
        inspector.module_inventory(model)
    except EngineError:
        return
    finally:
        inspector.close()
