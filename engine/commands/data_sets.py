"""`loratory data`: sets, which are datasets with versions and edits, and rows that a model makes of documents."""

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from loratory.engine.commands.data import DataArgument, data_group, dataset_config, dataset_options
from loratory.engine.commands.output import (
    AsJson,
    KeyVariable,
    ProgressLine,
    Yes,
    confirm,
    key_from,
    own_runs,
    print_result,
)
from loratory.engine.config.run import SET_PREFIX
from loratory.engine.data.source import SetRows, SourceOptions
from loratory.engine.data.workshop import sets
from loratory.engine.data.workshop.exchange import add_set, compare_versions, export_version
from loratory.engine.data.workshop.operations import Operation
from loratory.engine.errors import DatasetError
from loratory.engine.evaluation.used_datasets import dataset_uses, list_datasets
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome, local_owner, typed_path
from loratory.engine.runs.disk import require_disk_space

SetName = Annotated[str, typer.Argument(metavar="NAME", help="A set.")]
VersionName = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="A version of a set, or the newest.")]


@data_group.command("list")
def list_all(as_json: AsJson = False) -> None:
    """List your datasets: sets, votes, uploads, and those of the Hub that your runs used."""
    home = LoratoryHome.from_environment()
    report(list_datasets(home, own_runs(), (sets.describe(home, name) for name in sets.set_names(home))), as_json)


@data_group.command()
@dataset_options()
def add(
    source: DataArgument,
    settings: dict[str, Any],
    name: Annotated[str, typer.Option("--name", help="What the set is called.")],
    as_json: AsJson = False,
) -> None:
    """Make a set, which keeps a copy of a file or a sample; a dataset on the Hub is pinned to its commit."""
    home, config = LoratoryHome.from_environment(), dataset_config(source, settings)
    owner = home.owner or local_owner()
    dataset = add_set(home, name, config, author=owner, require_space=lambda b: require_disk_space(home, owner, b))
    report({"train_on": f"{SET_PREFIX}{name}", **dataset.facts.model_dump(exclude_defaults=True)}, as_json)


@data_group.command()
def show(name: VersionName, as_json: AsJson = False) -> None:
    """Show where a set comes from, and its history: each operation with the version that it made and the runs of that."""
    dataset = sets.find_version(LoratoryHome.from_environment(), name)
    uses = dataset_uses(own_runs()).get(f"{SET_PREFIX}{dataset.name}", {})
    history = [{**step, "runs": uses.get(step["version"], [])} for step in dataset.history()]
    value = {"version": dataset.versions[-1].name, "last_operation": len(dataset.entries)}
    report({**value, "source": dataset.facts.model_dump(exclude_defaults=True), "history": history}, as_json)


@data_group.command()
def rename(
    name: SetName,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="What it is called from now on.")],
    as_json: AsJson = False,
) -> None:
    """Rename a set. Runs and configurations that name it as before find it too."""
    sets.rename_set(LoratoryHome.from_environment(), name, new_name)
    report({"train_on": f"{SET_PREFIX}{new_name}"}, as_json)


@data_group.command()
def edit(
    name: SetName,
    apply: Annotated[Path, typer.Option("--apply", exists=True, dir_okay=False, help="Operations, one JSON a line.")],
    since: Annotated[int | None, typer.Option("--since", min=0, help="The last operation that you know of.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add operations to a set, such as the undo of another one: all of them, or none."""
    operations: list[Operation] = []
    try:
        for line in apply.read_bytes().splitlines():
            operations.append(TypeAdapter[Operation](Operation).validate_json(line))
    except ValidationError as error:
        what = f"Line {len(operations) + 1:,} of {apply.name} is not an operation: {sets.reason(error)}."
        raise DatasetError(what, "Nothing was changed; correct the line, then apply the file again.") from error
    home = LoratoryHome.from_environment()
    owner = home.owner or local_owner()
    require_disk_space(home, owner)
    entries = sets.find_set(home, name).append(operations, since=since, author=owner)
    report({"version": sets.find_set(home, name).versions[-1].name, "operations": entries}, as_json)


@data_group.command()
def diff(
    name: SetName,
    before: Annotated[str, typer.Argument(metavar="A", help="A version.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON value for each row, on a line of its own.")] = False,
) -> None:
    """Show which rows came, changed and went from one version of a set to another."""
    for change in compare_versions(_open(f"{name}@{before}"), _open(f"{name}@{after}")):  # a set may not fit in memory
        report(change, as_json)


@data_group.command()
def export(
    name: VersionName,
    to: Annotated[Path, typer.Option("--to", help="The file to write, as JSON Lines.")],
    as_json: AsJson = False,
) -> None:
    """Write a version to a file, which trains as the version does."""
    rows = _open(name)
    export_version(rows, typed_path(to), LoratoryHome.from_environment())
    report({"version": rows.name, "file": str(to)}, as_json)


@data_group.command()
def delete(name: SetName, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove a set with its source and all versions."""
    folder = sets.set_folder(LoratoryHome.from_environment(), name)
    runs = list(chain(*dataset_uses(own_runs()).get(f"{SET_PREFIX}{folder.name}", {}).values()))
    used = f" Runs that used it, and cannot be resumed without it: {', '.join(runs)}." if runs else ""
    confirm(f"This removes the set {folder.name} and all of its versions.{used}", yes=yes)
    sets.delete_set(folder)
    report({"name": folder.name, "runs": runs}, as_json)


def _open(name: str) -> SetRows:
    home = LoratoryHome.from_environment()
    return SetRows(sets.find_version(home, name), SourceOptions(home=home))


def report(value: Any, as_json: bool) -> None:
    """Print a value as JSON, or as YAML for people."""
    plain = to_jsonable_python(value)
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6)
    print_result(plain, text.rstrip(), as_json=as_json)


@data_group.command()
def generate(
    files: Annotated[list[str] | None, typer.Argument(help="Documents: .txt .md .html .pdf .docx.")] = None,
    recipe: Annotated[str, typer.Option(help="What a passage becomes, such as summary.")] = "question_answer",
    detail: Annotated[str, typer.Option(help="What to extract, a style, your own prompt, or a further wish.")] = "",
    endpoint: Annotated[str, typer.Option(help="Base address, such as http://localhost:8000/v1.")] = "",
    model: Annotated[str, typer.Option(help="Name of the model there.")] = "",
    key_variable: KeyVariable = "",
    chunk: Annotated[int, typer.Option(min=200, max=100_000, help="Most characters of a passage.")] = 2000,
    overlap: Annotated[int, typer.Option(min=0, help="Characters of the passage before, at most a third.")] = 200,
    answer_tokens: Annotated[int, typer.Option(min=16, max=100_000, help="Most tokens of an answer.")] = 1024,
    limit_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of all prompts and answers.")] = None,
    prices: Annotated[tuple[float, float], typer.Option(help="Of a million prompt and answer tokens.")] = (0.0, 0.0),
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 120.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate tokens and cost.")] = False,
    resume: Annotated[str, typer.Option(metavar="JOB", help="Continue this job; so does the same command.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make candidates for rows out of documents, with a model behind an endpoint."""
    from loratory.engine.data.workshop.documents import read_passages
    from loratory.engine.data.workshop.generation import Job
    from loratory.engine.endpoint import Endpoint

    home, notes = LoratoryHome.from_environment(), list[str]()
    require_disk_space(home, home.owner or local_owner())
    if resume:
        job = Job.find(home, resume)
    else:
        settings = {"recipe": recipe, "detail": detail, "endpoint": endpoint, "model": model}
        paths = [SourceOptions(home=home).access.resolve(file) for file in files or []]
        passages, notes = read_passages(paths, home, chunk, overlap)
        job = Job(home, {**settings, "answer_tokens": answer_tokens}, passages)
    name, count, tokens = job.folder.name, len(job.passages), job.most_tokens
    cost = round(sum(number * price / 1e6 for number, price in zip(tokens, prices, strict=True)), 4)
    with ProgressLine() as line:
        line.say(f"Job {name}: {count:,} passages, at most {sum(tokens):,} tokens.")
        if not dry_run:
            key = None if (secret := key_from(key_variable)) is None else secret.get_secret_value()
            job.run(Endpoint(job.settings, key, timeout), limit_tokens or float("inf"), line.show)
    at_most = {"prompt_tokens": tokens[0], "answer_tokens": tokens[1], "cost": cost}
    result = {"job": name, "passages": count, "at_most": at_most, "notes": notes, "candidates": len(job.rows())}
    report({**result, "next": f"loratory data review {name} --export FILE"}, as_json)


@data_group.command()
def review(
    name: Annotated[str, typer.Argument(metavar="JOB", help="A job of `loratory data generate`.")],
    export: Annotated[Path | None, typer.Option(help="Write what is not judged to this file, for verdicts.")] = None,
    import_: Annotated[Path | None, typer.Option("--import", exists=True, help="Read a file with verdicts.")] = None,
    accept_all: Annotated[bool, typer.Option("--accept-all", help="Accept what is not judged.")] = False,
    reviewer: Annotated[str, typer.Option(help="Who judges; you where it is empty.")] = "",
    set_name: Annotated[str, typer.Option("--set", help="Make a set of the accepted rows.")] = "",
    delete: Annotated[bool, typer.Option("--delete", help="Remove the job; sets made of it stay.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Judge candidates: accept, edit, reject or skip. Accepted rows become a set, and the job can go."""
    from loratory.engine.data.workshop.generation import Job

    home = LoratoryHome.from_environment()
    owner = home.owner or local_owner()
    job, reviewer, step = Job.find(home, name), reviewer or owner, f"loratory data review {name} --set NAME"
    if import_ is not None:
        job.judge(import_.read_bytes().splitlines(), reviewer)
    if accept_all:
        job.judge(job.open_candidates(reviewer, "accept"), reviewer)
    if export is not None:
        write_atomically(typed_path(export), job.open_candidates(reviewer))
        step = f"write verdicts into {export}, then: loratory data review {name} --import {export}"
    if set_name:
        job.make_set(home, set_name, owner, lambda size: require_disk_space(home, owner, size))
        step = f"loratory train CONFIG --set dataset.source=set:{set_name}"
    facts = job.review(reviewer)
    counts = {"candidates": len(facts["candidates"]), "not_judged": len(facts["left"]), "accepted": facts["accepted"]}
    if delete:
        confirm(f"This removes the job {name} with its candidates and verdicts; sets made of it stay.", yes=yes)
        job.delete()
        step = step if set_name else "loratory data list"
    report({**counts, "agreements": facts["agreements"], "next": step}, as_json)


COMMANDS = ()  # all are in data_group
