"""Options that commands share, and what they print: JSON on stdout, tables, a line of progress on stderr."""

import contextlib
import functools
import inspect
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeVar, get_origin

import typer
from pydantic import BaseModel, SecretStr
from pydantic_core import to_json

from loratory.engine.config.run import RunSection, WorkPlace
from loratory.engine.errors import RunError
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.quantities import gib
from loratory.engine.runs.store import RunStore

Result = TypeVar("Result")

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the last characters of it.")]
ConfigName = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, a preset's name, or a run's id.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.field=value, any number of times.")]
Where = Annotated[str | None, typer.Option("--where", help=RunSection.model_fields["where"].description)]
NextWhere = Annotated[
    str | None,
    typer.Option("--where", help="local or slurm: continue on this machine, or on the cluster, from now on."),
]
WorkWhere = Annotated[
    WorkPlace,
    typer.Option("--where", help="local or slurm: load the model on this machine, or on a node of the cluster."),
]
CheckpointName = Annotated[str | None, typer.Option("--checkpoint", help="A checkpoint of the run, such as step-40.")]
BaseModelName = Annotated[
    str | None, typer.Option("--model", help="The base model, where the adapter's own is not here.")
]
KeyVariable = Annotated[str, typer.Option(help="The environment variable that has the key.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")]

_BAR_CELLS = 24
_PLAIN_SECONDS = 10.0


def setting_options(
    section: type[BaseModel], *fields: str, group: str = "settings", **names: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these settings; it gets their values by name.

    Args:
        section: Has their types, defaults and help. Bounds are checked where the values become a section.
        fields: The settings; all where none is named.
        group: The parameter of the command that gets the values.
        names: What options are called that do not bear the setting's name, such as `kind="--to"`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = {}
        for name in fields or section.model_fields:
            field = section.model_fields[name]
            is_mapping = get_origin(field.annotation) is dict
            more = " Given as name=value, any number of times." if is_mapping else ""
            option = typer.Option(*names.get(name, "").split(), help=f"{field.description}{more}")
            default = inspect.Parameter.empty if field.is_required() else None if is_mapping else field.default
            kind = Annotated[list[str] | None if is_mapping else field.annotation, option]  # type: ignore[valid-type]
            options[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != group
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(**{group: {name: values.pop(name) for name in options}}, **values)

        run.__signature__ = inspect.Signature([*own, *options.values()])  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate


def with_where(overrides: list[str] | None, where: str | None) -> list[str] | None:
    """Return overrides of settings with the place that `--where` names."""
    return overrides if where is None else [*(overrides or ()), f"run.where={where}"]


def key_from(variable: str) -> SecretStr | None:
    """Return the key of an endpoint that an environment variable has; None where no variable is named."""
    return SecretStr(os.environ.get(variable, "").strip()) if variable else None


def own_runs() -> RunStore:
    """Return the runs of the person at the terminal."""
    return RunStore(LoratoryHome.from_environment(), local_owner())


def print_json(value: Any) -> None:
    """Print one JSON value and nothing else; numbers that JSON cannot hold become null."""
    sys.stdout.write(to_json(value, inf_nan_mode="null").decode() + "\n")
    sys.stdout.flush()


def print_result(value: Any, text: str, *, as_json: bool) -> None:
    """Print a value as JSON, or the same as text for people."""
    if as_json:
        print_json(value)
    else:
        print(text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns that line up; cells that look like figures stand to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if cell[:1].isdigit() or cell == "–" else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def confirm(question: str, *, yes: bool, name: str = "") -> None:
    """Ask before something is lost, unless the answer was given on the command line; a name is typed instead of y.

    Raises:
        RunError: If the person declines, or cannot be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise RunError("This needs a confirmation, and stdin is not a terminal.", "Add --yes.")
    sys.stderr.write(f"{question} Type {name} to continue: " if name else f"{question} [y/N] ")
    sys.stderr.flush()
    answer = sys.stdin.readline().strip()
    if answer != name if name else answer.lower() not in ("y", "yes"):
        raise RunError("Nothing was changed.", f"Answer {name or 'y'} to continue.")


def or_dash(value: float | None, format_figure: Callable[[float], str]) -> str:
    """Return a figure in words, and a dash where it is not known."""
    return "–" if value is None else format_figure(value)


def format_loss(loss: float | None) -> str:
    """Return a loss with four decimals."""
    return or_dash(loss, lambda known: f"{known:.4f}")


def format_memory(bytes_: int | None) -> str:
    """Return a size of memory in GiB."""
    return or_dash(bytes_, lambda known: f"{gib(known)} GiB")


def format_time(moment: float | None) -> str:
    """Return a moment in local time, to the minute."""
    return "–" if not moment else f"{datetime.fromtimestamp(moment):%Y-%m-%d %H:%M}"


class ProgressLine(contextlib.AbstractContextManager["ProgressLine"]):
    """One line that is written over and over on a terminal; elsewhere a line now and then, so logs stay short.

    As a context manager it is cleared at the end.
    """

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_terminal = self._stream.isatty()
        self._line = ""
        self._last_written = -math.inf

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, text: str, share: float | None = None) -> None:
        """Show what is being done, and how much of it from 0 to 1 where that is known, as a bar."""
        line = text
        if share is not None:
            cells = round(max(0.0, min(share, 1.0)) * _BAR_CELLS)
            line = f"{'█' * cells}{'·' * (_BAR_CELLS - cells)} {share:4.0%} {text}"
        if line == self._line:
            return
        now = time.monotonic()
        if self._is_terminal:
            self._stream.write("\r" + line.ljust(len(self._line)))
        elif now - self._last_written >= _PLAIN_SECONDS:
            self._stream.write(line + "\n")
            self._last_written = now
        else:
            return
        self._line = line
        self._stream.flush()

    def say(self, text: str) -> None:
        """Leave a line that stays."""
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Make room for other output."""
        if self._is_terminal and self._line:
            self._stream.write("\r" + " " * len(self._line) + "\r")
            self._stream.flush()
        self._line = ""


def with_progress(work: Callable[[Callable[[Any], None]], Result]) -> Result:
    """Do work that reports a message and a fraction, and show these in a line."""
    with ProgressLine() as line:
        return work(lambda progress: line.show(progress.message, progress.fraction))
