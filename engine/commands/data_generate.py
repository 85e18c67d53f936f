"""`loratory data generate` and `review`: rows that a model makes of documents, and what people say of them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import to_json

from loratory.engine.commands.data import data_group
from loratory.engine.commands.data_sets import report
from loratory.engine.commands.output import AsJson, ProgressLine, setting_options
from loratory.engine.config.load import section_from_mapping
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.generation import GenerationSettings, Job
from loratory.engine.errors import DatasetError
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome, local_owner, typed_path
from loratory.engine.runs.disk import require_disk_space


@data_group.command()
@setting_options(GenerationSettings)
def generate(
    settings: dict[str, Any],
    files: Annotated[list[str] | None, typer.Argument(help="Documents: .txt .md .html .pdf .docx.")] = None,
    key_variable: Annotated[str, typer.Option(help="The environment variable that has the key.")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 120.0,
    limit_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of prompts and answers.")] = None,
    prices: Annotated[tuple[float, float], typer.Option(help="Of a million prompt and answer tokens.")] = (0.0, 0.0),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate tokens and cost.")] = False,
    resume: Annotated[str, typer.Option(metavar="JOB", help="Continue this job; so does the same command.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make candidates for rows out of documents, with a model behind an endpoint."""
    from loratory.engine.data.workshop.documents import read_passages
    from loratory.engine.data.workshop.endpoint import Endpoint

    home, notes = LoratoryHome.from_environment(), list[str]()
    require_disk_space(home, home.owner or local_owner())
    if resume:
        job = Job.find(home, resume)
    elif not files:
        raise DatasetError("No document is named.", "Name documents, or a job to --resume.")
    else:
        values = section_from_mapping(GenerationSettings, settings)
        paths = [SourceOptions(home=home).access.resolve(file) for file in files]
        passages, notes = read_passages(paths, home, values.chunk_characters, values.overlap_characters)
        job = Job(home, values, passages)
    name, count, tokens, values = job.folder.name, len(job.passages), job.estimate(), job.settings
    cost = sum(number * price / 1e6 for number, price in zip(tokens, prices, strict=True))
    most = {"prompt_tokens": tokens[0], "answer_tokens": tokens[1], "cost": round(cost, 4)}
    with ProgressLine() as line:
        line.say(f"Job {name}: {count:,} passages, at most {sum(tokens):,} tokens.")
        if not dry_run:
            endpoint = Endpoint(values.endpoint, values.model, key_variable, values.answer_tokens, timeout)
            job.run(endpoint, limit_tokens or float("inf"), lambda n, used: line.show(f"{used:,} tokens", n / count))
    result = {"job": name, "passages": count, "at_most": most, "notes": notes, "candidates": len(job.rows())}
    report({**result, "next": f"loratory data review {name} --export FILE"}, as_json)


@data_group.command()
def review(
    name: Annotated[str, typer.Argument(metavar="JOB", help="A job of `loratory data generate`.")],
    export: Annotated[Path | None, typer.Option(help="Write what is not judged to this file, for verdicts.")] = None,
    import_: Annotated[Path | None, typer.Option("--import", exists=True, help="Read a file with verdicts.")] = None,
    accept_all: Annotated[bool, typer.Option("--accept-all", help="Accept what is not judged.")] = False,
    reviewer: Annotated[str, typer.Option(help="Who judges; you where it is empty.")] = "",
    set_name: Annotated[str, typer.Option("--set", help="Make a set of the accepted rows.")] = "",
    as_json: AsJson = False,
) -> None:
    """Judge candidates: accept, edit, reject or skip. Accepted rows become a set."""
    home = LoratoryHome.from_environment()
    owner = home.owner or local_owner()
    job, reviewer, step = Job.find(home, name), reviewer or owner, f"loratory data review {name} --set NAME"
    if import_ is not None:
        job.judge(import_.read_bytes().splitlines(), reviewer)
    if accept_all:
        job.judge([to_json({**value, "verdict": "accept"}) for value in job.open_candidates(reviewer)], reviewer)
    if export is not None:
        write_atomically(typed_path(export), (to_json(value) + b"\n" for value in job.open_candidates(reviewer)))
        step = f"write verdicts into {export}, then: loratory data review {name} --import {export}"
    if set_name:
        job.make_set(home, set_name, owner, lambda size: require_disk_space(home, owner, size))
        step = f"loratory train CONFIG --set dataset.source=set:{set_name}"
    left = list(job.open_candidates(reviewer))
    counts = {"candidates": len(job.rows()), "not_judged": len(left), "accepted": len(job.accepted())}
    report({**counts, "agreements": job.agreements(), "next": step}, as_json)


COMMANDS = ()  # both are in data_group
