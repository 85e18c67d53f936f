"""`loratory data`: sets, which are datasets with versions and edits."""

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from loratory.engine.commands.data import DataArgument, MapOption, dataset_config
from loratory.engine.commands.output import (
    AsJson,
    confirm,
    format_time,
    own_runs,
    print_json,
    print_result,
    print_table,
    setting_options,
)
from loratory.engine.config.run import SET_PREFIX, DatasetConfig
from loratory.engine.data.source import SetRows, SourceOptions
from loratory.engine.data.workshop.log import LogEntry, append_operations, in_force, reason
from loratory.engine.data.workshop.operations import Operation, Undo
from loratory.engine.data.workshop.sets import find_set, find_version, set_names
from loratory.engine.errors import DatasetError, shorten
from loratory.engine.paths import LoratoryHome, local_owner, typed_path
from loratory.engine.quantities import size
from loratory.engine.runs.disk import require_disk_space

data = typer.Typer(name="data", help="Datasets with versions and edits.", no_args_is_help=True)

SetName = Annotated[str, typer.Argument(metavar="NAME", help="A set.")]
VersionName = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A version of a set, or the newest.")]


@data.command("list")
def list_sets(as_json: AsJson = False) -> None:
    """List the sets."""
    home, uses, rows = LoratoryHome.from_environment(), _runs_by_version(), []
    for dataset in (find_set(home, name) for name in set_names(home)):
        names = {version.name for version in dataset.versions}
        last_run = max((run for name in names for run in uses.get(f"{dataset.name}@{name}", ())), default=None)
        rows.append((dataset.name, dataset.facts.rows, dataset.facts.copied_bytes, len(names), last_run))
    _print_rows(("name", "rows", "bytes", "versions", "last_run"), rows, as_json)


@data.command()
@setting_options(DatasetConfig, "format", "subset", "split", "revision")
def add(
    source: DataArgument,
    settings: dict[str, Any],
    name: Annotated[str, typer.Option("--name", help="What the set is called.")],
    column_map: MapOption = None,
    as_json: AsJson = False,
) -> None:
    """Make a set, which keeps a copy of a file or a sample; a dataset on the Hub is pinned to its commit."""
    from loratory.engine.data.workshop.exchange import add_set

    home, config = LoratoryHome.from_environment(), dataset_config(source, column_map, settings)
    owner = home.owner or local_owner()
    dataset = add_set(home, name, config, author=owner, require_space=lambda b: require_disk_space(home, owner, b))
    text = f"{name}: {dataset.facts.rows:,} rows. Train on it as {SET_PREFIX}{name}."
    print_result({"name": name, **dataset.facts.model_dump()}, text, as_json=as_json)


@data.command()
def show(
    name: VersionName,
    row: Annotated[int | None, typer.Option("--row", min=1, help="Show this row, and what was done to it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show where a set comes from, and the operations on its rows."""
    home = LoratoryHome.from_environment()
    dataset, version = find_version(home, name)
    entries = in_force(dataset.entries[: version.last] if "@" in name else dataset.entries)
    lines = [f"{dataset.name}@{version.name}: {dataset.facts.rows:,} rows of {dataset.facts.dataset.source}."]
    value: dict[str, Any] = {"name": dataset.name, "version": version.name, "last": len(dataset.entries)}
    if row is not None:
        if row > dataset.facts.rows:
            raise DatasetError(
                f"Row {row:,} does not exist; the set has {dataset.facts.rows:,}.", "Choose another row."
            )
        rows = SetRows(dataset, version, SourceOptions(home=home))
        before = next(filter(None, rows.untouched.records(row - 1)))
        after = rows.editor.apply(before)
        value |= {"before": before.value, "row": after.value if after is not None else None}
        lines += [
            f"source: {before.sample(2000)}",
            f"now:    {after.sample(2000) if after is not None else 'left out'}",
        ]
        entries = [entry for entry in entries if any(start < row <= end for start, end in entry.operation.touched)]
    value |= {"source": dataset.facts, "notes": dataset.notes, "operations": entries}
    print_result(value, "\n".join([*lines, *dataset.notes, *map(_line, entries)]), as_json=as_json)


@data.command()
def edit(
    name: SetName,
    apply: Annotated[Path, typer.Option("--apply", help="A file with one operation as JSON on each line.")],
    seen: Annotated[int | None, typer.Option("--seen", min=0, help="The last operation that you have seen.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add operations to a set: all of them, or none."""
    operations: list[Operation] = []
    try:
        for line in typed_path(apply).read_bytes().splitlines():
            operations.append(TypeAdapter[Operation](Operation).validate_json(line))
    except OSError as error:
        raise DatasetError(f"{apply} cannot be read ({error.strerror}).", "Check the path.") from error
    except ValidationError as error:
        what = f"Line {len(operations) + 1:,} of {apply.name} is not an operation: {reason(error)}."
        raise DatasetError(what, "Nothing was changed; correct the line, then apply the file again.") from error
    _append(name, operations, seen, as_json)


@data.command()
def undo(
    name: SetName,
    operation: Annotated[int, typer.Argument(metavar="ID", min=1, help="Number of the operation.")],
    as_json: AsJson = False,
) -> None:
    """Undo one operation; an undo can be undone in turn."""
    _append(name, [Undo(kind="undo", id=operation)], None, as_json)


@data.command()
def versions(name: SetName, as_json: AsJson = False) -> None:
    """List the versions of a set, and the runs that used each."""
    dataset, uses = find_set(LoratoryHome.from_environment(), name), _runs_by_version()
    rows = [(v.name, v.last, v.author, v.time, uses.get(f"{name}@{v.name}", [])) for v in dataset.versions]
    _print_rows(("version", "operation", "author", "time", "runs"), rows, as_json)


@data.command()
def diff(
    name: SetName,
    before: Annotated[str, typer.Argument(metavar="A", help="A version.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Show which rows came, changed and went from one version of a set to another."""
    from loratory.engine.data.workshop.exchange import compare_versions

    home = LoratoryHome.from_environment()
    sides = (SetRows(*find_version(home, f"{name}@{version}"), SourceOptions(home=home)) for version in (before, after))
    separator = "["
    for change in compare_versions(*sides):  # printed as it is found: a set may be larger than the memory
        if as_json:
            sys.stdout.write(separator + to_json(change._asdict()).decode())
            separator = ",\n"
        else:
            texts = (f"{column}\n{text}".strip() for column, text in change.fields.items())
            print("\n".join([f"row {change.row:,} {change.change}", *texts]))
    if as_json:
        print("]" if separator != "[" else "[]")


@data.command()
def export(
    name: VersionName,
    to: Annotated[Path, typer.Option("--to", help="The file to write, as JSON Lines.")],
    as_json: AsJson = False,
) -> None:
    """Write a version to a file, which trains as the version does."""
    from loratory.engine.data.workshop.exchange import export_version

    home = LoratoryHome.from_environment()
    rows = SetRows(*find_version(home, name), SourceOptions(home=home))
    count = export_version(rows, typed_path(to))
    print_result({"version": rows.name, "rows": count, "file": str(to)}, f"{to}: {count:,} rows.", as_json=as_json)


@data.command()
def delete(
    name: SetName, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, as_json: AsJson = False
) -> None:
    """Remove a set with its source and all versions."""
    dataset, uses = find_set(LoratoryHome.from_environment(), name), _runs_by_version()
    runs = sorted(run for version, used in uses.items() if version.startswith(f"{name}@") for run in used)
    if runs:
        print(f"Runs that used it, and cannot be resumed without it: {', '.join(runs)}.", file=sys.stderr)
    confirm(f"This removes the set {name} with {len(dataset.entries):,} operations.", yes=yes)
    dataset.delete()
    print_result({"name": name, "runs": runs}, f"{name} is removed.", as_json=as_json)


def _append(name: str, operations: Sequence[Operation], seen: int | None, as_json: bool) -> None:
    home = LoratoryHome.from_environment()
    dataset, owner = find_set(home, name), home.owner or local_owner()
    require_disk_space(home, owner)
    added = append_operations(dataset.log, operations, seen=seen, author=owner, rows=dataset.facts.rows)
    newest = find_set(home, name).versions[-1].name
    text = "\n".join([*dataset.notes, *map(_line, added), f"{name} is at version {newest}."])
    print_result({"name": name, "version": newest, "operations": added}, text, as_json=as_json)


def _line(entry: LogEntry) -> str:
    text = entry.operation.model_dump_json(exclude={"kind"}, exclude_defaults=True)
    return f"{entry.id:>4}  {entry.operation.kind}  {shorten(text, 200)}  by {entry.author}, {format_time(entry.time)}"


def _print_rows(header: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool) -> None:
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
        return
    texts = {"time": format_time, "bytes": size, "runs": ", ".join}
    cells = [
        [texts.get(name, str)(value) if value else "–" for name, value in zip(header, row, strict=True)] for row in rows
    ]
    print_table([name.replace("_", " ") for name in header], cells)


def _runs_by_version() -> dict[str, list[str]]:
    """Return the ids of this person's runs by the versions of sets in their configurations."""
    runs: dict[str, list[str]] = {}
    for run in own_runs().list():
        with suppress(OSError):
            for version in re.findall(
                r"set:([a-z0-9._-]+@[0-9a-f]{12})", run.folder.config.read_text(encoding="utf-8")
            ):
                runs.setdefault(version, []).append(run.id)
    return runs


COMMANDS = (data,)
