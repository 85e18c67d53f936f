"""`loratory data generate` and `review`: rows that a model makes of documents, and what people say of them."""

import os
from pathlib import Path
from typing import Annotated

import typer

from loratory.engine.commands.data import data_group
from loratory.engine.commands.data_sets import report
from loratory.engine.commands.output import AsJson, ProgressLine, confirm
from loratory.engine.data.source import SourceOptions
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome, local_owner, typed_path
from loratory.engine.runs.disk import require_disk_space


@data_group.command()
def generate(
    files: Annotated[list[str] | None, typer.Argument(help="Documents: .txt .md .html .pdf .docx.")] = None,
    recipe: Annotated[str, typer.Option(help="What a passage becomes, such as summary.")] = "question_answer",
    detail: Annotated[str, typer.Option(help="What to extract, a style, your own prompt, or a further wish.")] = "",
    endpoint: Annotated[str, typer.Option(help="Base address, such as http://localhost:8000/v1.")] = "",
    model: Annotated[str, typer.Option(help="Name of the model there.")] = "",
    key_variable: Annotated[str, typer.Option(help="The environment variable that has the key.")] = "",
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
            key = os.environ.get(key_variable, "").strip() if key_variable else None
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
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before it is removed.")] = False,
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


COMMANDS = ()  # both are in data_group
