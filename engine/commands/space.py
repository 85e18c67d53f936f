"""`loratory space`: Loratory in a Hugging Face Space."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratory.engine.commands.output import AsJson, ProgressLine, Yes, confirm, print_result, setting_options
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ConfigError, EngineError, Problem, PushError, RunError, StorageError
from loratory.engine.interface.names import named_path
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import size
from loratory.engine.section import Section, setting
from loratory.engine.space.repository import Sdk, Settings, SpacePlan, Visibility, check_name, space_files
from loratory.engine.wheel import build_wheel

if TYPE_CHECKING:
    from loratory.engine.space.hub import SpaceHub, Status

space = typer.Typer(name="space", help="Loratory in a Hugging Face Space.", no_args_is_help=True)

_SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_ADMITTED = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WAIT_SECONDS = 60 * 60.0
_JSON_NAMES = {"text": "words", "admitted_names": "admitted"}  # of fields of a Status

SpaceName = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The Space.")]


class SpaceOptions(Section):
    """What a new Space is given, and what an update changes."""

    hardware: str | None = setting(None, "Hardware")
    """Such as cpu-basic (default), t4-small, or zero-a10g with --sdk gradio."""
    admit: list[str] | None = setting(None, "Admit")
    """A person or organization that may sign in besides you; repeatable. '' for you alone."""
    bucket: str | None = setting(None, "Bucket")
    """Where runs are kept, as OWNER/NAME; of a new Space OWNER/loratory-NAME."""
    no_bucket: bool = setting(False, "No bucket")
    """Keep no runs over a restart."""
    secret: list[str] | None = setting(None, "Secrets")
    """NAME[:VARIABLE], a secret of the Space, from the environment variable of that name, or of another; repeatable."""
    warm: list[str] | None = setting(None, "Models")
    """A public model to put into the image; repeatable."""
    sleep_hours: float | None = setting(None, "Sleep, hours", ge=0.1)
    """Sleep after so long without a visit; paid hardware only."""
    wait: bool = setting(True, "Wait")
    """Wait until it is running."""


_space_options = setting_options(SpaceOptions, no_bucket="--no-bucket")


@space.command()
@_space_options
def create(
    name: SpaceName,
    settings: dict[str, Any],
    visibility: Annotated[
        Visibility, typer.Option("--visibility", help="protected: everyone reaches the app, no one its files.")
    ] = "private",
    sdk: Annotated[Sdk, typer.Option("--sdk")] = "docker",
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="DIR", help="Write the files there instead, without a network.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a Space with Loratory in it, and wait until it runs.

    With the secret HF_TOKEN it keeps runs in the bucket. With --dry-run, the folder is what `docker build` takes as well.
    """
    options = section_from_mapping(SpaceOptions, settings)
    plan = SpacePlan(name, sdk, options.hardware or "cpu-basic", tuple(options.warm or ()))
    more = _settings(options, options.admit or (), options.bucket or name.replace("/", "/loratory-"))
    files = space_files(plan, build_wheel())
    if dry_run is not None:
        _write(files, dry_run, as_json=as_json)
        return
    more.refuse_impossible(name, plan.hardware, is_private=visibility == "private")
    with _hub() as hub:
        price = hub.refuse_unless_possible(plan)
        hub.report(f"{plan.hardware} costs ${price:,.2f} an hour while it runs.")
        hub.make(plan, visibility, more)
        try:
            upload = hub.upload(name, files, "Create Loratory's Space")
        except EngineError as error:
            fix = f"Then run `loratory space update {name}`, which sends them."
            raise PushError(f"The Space {name} was created, but its files were not sent. {error}", fix) from None
        status = hub.wait(name, upload.commit, _WAIT_SECONDS) if options.wait else hub.status(name)
    _report(status, as_json=as_json)


@space.command()
@_space_options
def update(name: SpaceName, settings: dict[str, Any], as_json: AsJson = False) -> None:
    """Update a Space to this version of Loratory, and change the given options; the rest stays as it is."""
    from loratory.engine.space.hub import sdk_of

    check_name(name, "space")
    options = section_from_mapping(SpaceOptions, settings)
    hardware, changed = options.hardware, _settings(options, options.admit, options.bucket)
    with _hub() as hub:
        info = hub.require(name)
        if hardware is not None:
            hub.report(f"{hardware} costs ${hub.price(hardware):,.2f} an hour while it runs.")
        card_models: object = vars(info.card_data).get("models") if info.card_data else None
        models = card_models if isinstance(card_models, list) else []
        runtime = hub.runtime(name)
        runs_on = hardware or runtime.requested_hardware or runtime.hardware or "cpu-basic"
        changed.refuse_impossible(name, runs_on, is_private=bool(info.private))
        plan = SpacePlan(name, sdk_of(info), runs_on, tuple(models if options.warm is None else options.warm))
        files = space_files(plan, build_wheel())
        changes = hub.change(name, changed._replace(hardware=hardware))
        upload = hub.upload(name, files, "Update Loratory")
        changes += [f"{file} changed" for file in upload.changed_files]
        changes += [f"{file} removed" for file in upload.removed_files]
        status = hub.wait(name, upload.commit, _WAIT_SECONDS) if options.wait and changes else hub.status(name)
    _report(status, changes, as_json=as_json)


@space.command()
def status(name: SpaceName, as_json: AsJson = False) -> None:
    """Show the state of a Space, what it costs, and when it sleeps."""
    check_name(name, "space")
    with _hub() as hub:
        state = hub.status(name)
    print_result(_values(state), "\n".join(_lines(state)), as_json=as_json)


@space.command()
def delete(
    name: SpaceName,
    yes: Yes = False,
    with_bucket: Annotated[
        bool, typer.Option("--with-bucket", help="Delete the bucket with its runs as well.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a Space; the bucket with its runs stays."""
    check_name(name, "space")
    with _hub() as hub:
        hub.require(name)
        bucket = hub.bucket_of(name)
        goes = f" and the bucket {bucket} with all its runs" if with_bucket and bucket else ""
        confirm(f"This permanently deletes the Space {name}{goes}.", yes=yes, name=name)
        hub.delete(name, bucket if with_bucket else None)
    remaining = None if with_bucket else bucket
    text = f"Deleted {name}{goes}." + (f" The bucket {remaining} stays." if remaining else "")
    print_result({"deleted": name, "bucket": bucket, "bucket_deleted": bool(goes)}, text, as_json=as_json)


@space.command()
def warm(models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Of the catalogue or the Hub.")]) -> None:
    """Download models to this home; the build of the image runs it."""
    home = LoratoryHome.from_environment()
    for name in models:
        with ProgressLine() as line:
            source = resolve_model(ModelConfig(id=name), home, lambda progress: line.show(progress.message))
        print(f"{name}: {source.location}")


@contextmanager
def _hub() -> "Iterator[SpaceHub]":
    """Open the Hub as who is logged in on this machine."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from loratory.engine.hub import SPACE, Fault, HubFault
    from loratory.engine.space.hub import SpaceHub

    token = get_token()
    if token is None:
        raise SPACE.explain(Fault(HubFault.NO_TOKEN), "A Space")
    disable_progress_bars()
    with ProgressLine() as line:
        yield SpaceHub(HfApi(token=token), line.say)


def _settings(options: SpaceOptions, admit: Sequence[str] | None, bucket: str | None) -> Settings:
    bucket, hours = "" if options.no_bucket else bucket, options.sleep_hours
    if bucket:
        check_name(bucket, "bucket")
    names = [name.strip() for text in admit or () for name in text.split(",") if name.strip()]
    for name in names:
        if not _ADMITTED.fullmatch(name):
            raise ConfigError([Problem("admit", f"{name[:100]!r} is not the name of a person or an organization.")])
    secrets, seconds = dict(map(_secret, options.secret or ())), None if hours is None else round(hours * 3600)
    return Settings(secrets, names if admit is not None else None, bucket, sleep_seconds=seconds)


def _secret(text: str) -> tuple[str, str]:
    """Return name and value of a secret; the value comes from a variable of this terminal and is in no message."""
    name, _, variable = text.partition(":")
    variable = variable or name
    if not all(_SECRET.fullmatch(part) and not part.startswith("hf_") for part in (name, variable)):
        raise RunError(
            "--secret takes the name of an environment variable, or NAME:VARIABLE, and never a value.",
            "Other users can read command lines: set a variable to the value and give its name.",
        )
    value = os.environ.get(variable, "").strip()
    if not value:
        fix = f"Set it with `read -rs {variable} && export {variable}`, or leave --secret {text} out."
        raise RunError(f"The variable {variable} is not set in this terminal, or empty.", fix)
    return name, value


def _write(files: Mapping[str, bytes], folder: Path, *, as_json: bool) -> None:
    path = named_path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise StorageError(f"{folder} is not empty.", "Name a new folder.")
        for name, content in files.items():
            (path / name).write_bytes(content)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}).", "Choose another folder.") from error
    sizes = {name: len(content) for name, content in files.items()}
    text = "\n".join(f"{size(bytes_):>10}  {path / name}" for name, bytes_ in sizes.items())
    print_result({"folder": str(path), "files": sizes}, text, as_json=as_json)


def _report(status: "Status", changes: Sequence[str] | None = None, *, as_json: bool) -> None:
    """Print where a Space is and what it does; one that failed is an error."""
    from loratory.engine.space.hub import stage_of

    if stage_of(status.stage).has_failed:
        log = "".join(f"\n  {line}" for line in status.log)
        fix = f"Look at {status.page}; once it is fixed, run `loratory space update {status.name}`."
        raise PushError(f"The Space {status.text}{log}", fix)
    values, lines = _values(status), _lines(status)
    if changes is not None:
        values["changed"] = list(changes)
        lines.append(f"Changed: {'; '.join(changes)}." if changes else "Nothing to update.")
    print_result(values, "\n".join(lines), as_json=as_json)


def _values(status: "Status") -> dict[str, object]:
    return {_JSON_NAMES.get(name, name): value for name, value in status._asdict().items()}


def _lines(status: "Status") -> list[str]:
    price = "price unknown" if status.price_per_hour_usd is None else f"${status.price_per_hour_usd:,.2f} an hour"
    hardware = status.hardware or status.requested_hardware or "none yet"
    if status.requested_hardware not in (None, hardware):
        hardware = f"{hardware}, {status.requested_hardware} requested"
    sleeps = "never" if status.sleep_seconds is None else f"after {status.sleep_seconds / 3600:g} h without a visit"
    facts = {
        "app": status.address,
        "page": status.page,
        "hardware": f"{hardware}, {price} while it runs",
        "sleeps": sleeps,
        "runs": _where_runs_are_kept(status),
        "admitted": status.admitted_names or "the owner alone",
    }
    log = [f"  {line}" for line in status.log]
    return [f"{status.name} {status.text}", *(f"{key:<10}{value}" for key, value in facts.items()), *log]


def _where_runs_are_kept(status: "Status") -> str:
    if status.bucket is None:
        return "lost at each restart: no bucket"
    if not status.has_token:
        return (
            f"lost at each restart: no token for the bucket {status.bucket}; "
            f"`loratory space update {status.name} --secret HF_TOKEN:VARIABLE` gives it one"
        )
    return f"kept in the bucket {status.bucket}"


COMMANDS = (space,)
