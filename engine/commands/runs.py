"""What the Runs tab does, also while a page is open: list, end and resume runs, their notes, order and cost."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from loratory.engine.commands import output
from loratory.engine.commands.train import describe, follow_to_the_end, print_runs, report, result_json
from loratory.engine.config.load import mapping_from_file, parse_partial_config, section_from_mapping
from loratory.engine.config.results import EvaluationSection
from loratory.engine.data.workshop.sets import pinned
from loratory.engine.errors import RunError
from loratory.engine.interface.workspace import Run
from loratory.engine.lab.rules import resume_run
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.huggingface_jobs.layout import JobRequest
from loratory.engine.quantities import size
from loratory.engine.runs import control
from loratory.engine.runs.projects import read_project_tests, save_project_tests
from loratory.engine.runs.run import Run as StoredRun
from loratory.engine.runs.run import State
from loratory.engine.runs.store import RunStore, folder_size_bytes
from loratory.engine.runs.summary import RunIndex, RunQuery, select_runs, sort_keys, summaries_csv, summarize
from loratory.engine.runs.usage import read_electricity, save_electricity
from loratory.engine.supervision.launch import with_absolute_paths
from loratory.engine.supervision.queue import QueueMove, QueueOrder
from loratory.engine.supervision.supervisor import reconcile

_TRANSITION_SECONDS = 15.0


def runs(
    terms: Annotated[
        list[str] | None, typer.Argument(metavar="WORDS", help="Only runs with all these words in name, model, …")
    ] = None,
    state: Annotated[list[str] | None, typer.Option("--state", help="Only runs in this state.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Only runs of this method.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Only runs on this model.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only runs with this tag; several: with all.")] = None,
    project: Annotated[list[str] | None, typer.Option("--project", help="Only runs of this project.")] = None,
    with_star: Annotated[bool, typer.Option("--star", help="Only runs with a star.")] = False,
    sort: Annotated[str, typer.Option("--sort", help=f"{', '.join(sort_keys())}, or a test set.")] = "created",
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest, or oldest, first.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="All columns as CSV.")] = False,
    as_json: output.AsJson = False,
) -> None:
    """List the runs, newest first."""
    if unknown := set(state or ()) - set(get_args(State)):
        raise typer.BadParameter(f"{unknown.pop()!r} is not one of {', '.join(get_args(State))}.", param_hint="--state")
    store = _store()
    query = RunQuery(
        terms=" ".join(terms or ()),
        states=cast(tuple[State, ...], tuple(state or ())),
        methods=tuple(method or ()),
        models=tuple(model or ()),
        tags=tuple(tag or ()),
        projects=tuple(project or ()),
        with_star=with_star,
        sort=sort,
        descending=not ascending,
    )
    rows = RunIndex(store).summaries()
    if sort not in (columns := sort_keys(rows)):
        raise typer.BadParameter(f"{sort!r} is not one of {', '.join(columns)}.", param_hint="--sort")
    summaries = select_runs(rows, query)
    if as_json:
        output.print_json([result_json(store.folder / summary.id, summary, None) for summary in summaries])
    elif as_csv:
        typer.echo(summaries_csv(summaries), nl=False)
    elif not summaries:
        restricts = query != RunQuery(sort=sort, descending=not ascending)
        print("No such runs." if restricts else "No runs yet. Start one with `loratory train quickstart-cpu`.")
    else:
        print_runs(summaries)


def show(
    run_id: output.RunId,
    as_csv: Annotated[bool, typer.Option("--csv", help="The logged steps as CSV.")] = False,
    as_json: output.AsJson = False,
) -> None:
    """Show one run: its state and why, its figures, and the verdict on its curves."""
    run = Run(_store().home, _store().get(run_id))
    if as_csv:
        typer.echo(run.events().to_csv(index=False, lineterminator="\n"), nl=False)
    elif as_json:
        findings = [asdict(finding) for finding in run.findings()]
        output.print_json(result_json(run.folder, run.summary, None) | {"findings": findings})
    else:
        warnings = [finding.text for finding in run.findings()]
        print("\n\n".join([describe(run, run.summary, run.home), *warnings]))


def stop(run_id: output.RunId, as_json: output.AsJson = False) -> None:
    """Save what a run has learned so far, and stop it; a waiting run leaves the queue."""
    _send_request(run_id, control.request_stop, 2.0, as_json=as_json)


def cancel(run_id: output.RunId, as_json: output.AsJson = False) -> None:
    """End a run at once; its newest checkpoint stays."""
    _send_request(run_id, control.request_cancel, _TRANSITION_SECONDS, as_json=as_json)


def _send_request(run_id: str, request: Callable[[StoredRun], None], seconds: float, *, as_json: bool) -> None:
    """Make a request of a run, give it a moment to obey, and print what it does then."""
    store = _store()
    run = store.get(run_id)
    request(run)
    _wait_until(lambda: run.folder.read_state().is_final, store.home, seconds)
    summary = summarize(run)
    text = f"{run.id} is {summary.state}. {summary.cause} {summary.advice}".rstrip()
    output.print_result(result_json(run.folder.path, summary, None), text, as_json=as_json)


def resume(
    run_id: output.RunId,
    where: output.NextWhere = None,
    flavor: Annotated[
        str, typer.Option("--flavor", help="Of a run on Hugging Face Jobs: other hardware from now on.")
    ] = "",
    limit_hours: Annotated[
        float | None,
        typer.Option("--limit-hours", min=0.05, max=168, help="Of such a run: another time limit from now on."),
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Continue a run that was stopped, interrupted or failed, from its newest checkpoint, and follow it."""
    store = _store()
    run = store.get(run_id)
    if flavor or limit_hours is not None:
        JobRequest.with_changes(run.folder, flavor, limit_hours).save(run.folder)
    if where is not None:
        control.request_target(run, where)
    resume_run(store.home, run)
    _wait_until(lambda: not run.folder.read_state().is_final, store.home, _TRANSITION_SECONDS)
    resumed = Run(store.home, run)
    report(resumed, follow_to_the_end(resumed, output.ProgressLine()), as_json=as_json)


def delete(run_id: output.RunId, yes: output.Yes = False, as_json: output.AsJson = False) -> None:
    """Delete a run that has ended, with its adapter, checkpoints and log."""
    store = _store()
    run = store.get(run_id)
    if run.folder.read_state().is_final:
        bytes_ = folder_size_bytes(run.folder.path)
        output.confirm(f"Delete {run.id} ({summarize(run).label}, {size(bytes_)})?", yes=yes)
    freed = store.delete(run.id)
    text = f"Deleted {run.id}; {size(freed)} are free again."
    output.print_result({"run_id": run.id, "status": "deleted", "freed_bytes": freed}, text, as_json=as_json)


def rename(
    run_id: output.RunId,
    name: Annotated[str, typer.Argument(help='What to call it; "" gives it back its first name.')],
    as_json: output.AsJson = False,
) -> None:
    """Call a run something else; its configuration stays as it is."""
    _change(output.own_runs().get(run_id), as_json, name=name)


def note(
    run_id: output.RunId,
    text: Annotated[str, typer.Argument(help='What to remember about it; "" removes the note.')],
    as_json: output.AsJson = False,
) -> None:
    """Keep a note with a run."""
    _change(output.own_runs().get(run_id), as_json, note=text)


def tag(
    run_id: output.RunId,
    tags: Annotated[list[str], typer.Argument(help="Tags to add, or to remove.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove them.")] = False,
    as_json: output.AsJson = False,
) -> None:
    """Add tags to a run, or remove them; `loratory runs TAG` finds it by them."""
    run = output.own_runs().get(run_id)
    before = control.read_notes(run.folder).tags
    after = tuple(known for known in before if known not in tags) if remove else (*before, *tags)
    _change(run, as_json, tags=after)


def star(
    run_id: output.RunId,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it.")] = False,
    as_json: output.AsJson = False,
) -> None:
    """Give a run a star, or remove it; `loratory runs --star` lists these runs."""
    _change(output.own_runs().get(run_id), as_json, star=not remove)


def project(
    run_id: output.RunId,
    name: Annotated[str, typer.Argument(help='The project; "" removes the run from its project.')],
    as_json: output.AsJson = False,
) -> None:
    """Move a run to a project; `loratory runs --project NAME` lists its runs."""
    _change(output.own_runs().get(run_id), as_json, project=name)


def project_tests(
    name: Annotated[str, typer.Argument(help="The project.")],
    file: Annotated[
        Path | None, typer.Argument(help="YAML with test sets as `tests`, or a configuration that has some.")
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Show or replace the test sets of a project, which its new runs answer once they are complete; `tests: []` removes them."""
    store = output.own_runs()
    if file is not None:
        values = mapping_from_file(file)
        section = section_from_mapping(EvaluationSection, values.get("evaluation", values))
        config = with_absolute_paths(parse_partial_config({"evaluation": section}))
        save_project_tests(store, name, config.with_names(lambda _, text: pinned(text, store.home)).evaluation.tests)
    tests = read_project_tests(store, name)
    values = {"project": name, "tests": [test.model_dump(mode="json") for test in tests]}
    titles = ", ".join(test.title for test in tests)
    output.print_result(values, f"{name}: {titles or 'no test sets'}", as_json=as_json)


def move(
    run_id: output.RunId,
    where: Annotated[QueueMove, typer.Argument(metavar="first|up|down|last")],
    as_json: output.AsJson = False,
) -> None:
    """Move a waiting run within the queue."""
    store = output.own_runs()
    run = store.get(run_id)
    waiting = [other.id for other in store.list() if other.folder.read_state().state == "queued"]
    if run.id not in waiting:
        raise RunError(f"{run.id} is {run.folder.read_state().state} and does not wait.", "Only waiting runs move.")
    order = QueueOrder(store.home).shift(run.id, waiting, where)
    text = "\n".join(f"{number}. {waiting_id}" for number, waiting_id in enumerate(order, start=1))
    output.print_result({"queue": order}, text, as_json=as_json)


def start_anyway(run_id: output.RunId, as_json: output.AsJson = False) -> None:
    """Let a waiting run start although the free memory does not cover its estimate."""
    run = output.own_runs().get(run_id)
    control.request_start_anyway(run)
    text = f"{run.id} starts as soon as its device is free of other Loratory work. It may run out of memory."
    output.print_result({"run_id": run.id, "start_anyway": True}, text, as_json=as_json)


def electricity(
    price: Annotated[float | None, typer.Option("--price", help="Of one kilowatt-hour; 0 for none.")] = None,
    currency: Annotated[str | None, typer.Option("--currency", help="A sign or a code, such as EUR.")] = None,
    watts: Annotated[
        float | None, typer.Option("--watts", help="What the machine draws where no GPU measures it; 0 for unknown.")
    ] = None,
    as_json: output.AsJson = False,
) -> None:
    """Show or set the price of electricity, from which runs compute their cost."""
    home = LoratoryHome.from_environment()
    tariff = read_electricity(home)
    if (price, currency, watts) != (None, None, None):
        new_price = tariff.price_per_kwh if price is None else price or None
        new_watts = tariff.watts if watts is None else watts or None
        tariff = save_electricity(home, new_price, tariff.currency if currency is None else currency, new_watts)
    cost = "no price is set" if tariff.price_per_kwh is None else f"{tariff.currency} {tariff.price_per_kwh:g} a kWh"
    power = "unknown where no GPU measures it" if tariff.watts is None else f"{tariff.watts:g} W where none measures"
    output.print_result(tariff, f"price: {cost.strip()}\npower: {power}", as_json=as_json)


def _change(run: StoredRun, as_json: bool, **changes: Any) -> None:
    notes = control.change_notes(run.folder, **changes)
    tags = f" [{', '.join(notes.tags)}]" if notes.tags else ""
    project = f" in project {notes.project}" if notes.project else ""
    name = f"{'★ ' if notes.star else ''}{notes.name or 'no name of its own'}{project}"
    text = f"{run.id}: {name}{tags}{f' – {notes.note}' if notes.note else ''}"
    output.print_result({"run_id": run.id, **notes.model_dump()}, text, as_json=as_json)


def _store() -> RunStore:
    """Return the runs of this person, with states brought up to date where no server does so."""
    store = output.own_runs()
    reconcile(store.home)
    return store


def _wait_until(condition: Callable[[], bool], home: LoratoryHome, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        reconcile(home)
        time.sleep(0.1)


COMMANDS = (
    runs,
    show,
    stop,
    cancel,
    resume,
    delete,
    rename,
    note,
    tag,
    star,
    project,
    project_tests,
    move,
    start_anyway,
    electricity,
)
