"""`loratory script`: a run or a configuration as one stand-alone Python file, or as YAML."""

from pathlib import Path
from typing import Annotated

import typer

from engine.config.model import ModelConfig
from engine.paths import LoratoryHome, local_owner


def register(app: typer.Typer) -> None:
    """Add the command to the `loratory` program."""
    app.command("script")(script)


def script(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, a preset's name, or a run's id.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value, any number of times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file to write instead of stdout; it must not exist.")] = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="The complete configuration as YAML, which `loratory train` takes.")
    ] = False,
) -> None:
    """Print what a run does as a script on plain transformers, PEFT, TRL and datasets."""
    from engine.commands.configs import load_config_argument
    from engine.commands.named_path import named_path
    from engine.config.load import config_to_yaml
    from engine.errors import RunError, StorageError
    from engine.export.script.write import gather_script_facts, write_script
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
        text = write_script(run_config, gather_script_facts(run_config, home, run))
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
