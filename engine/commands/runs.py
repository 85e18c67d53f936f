"""`loratory runs, show, stop, cancel, resume, delete`: what the Runs tab does, also while a page is open."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from engine.commands.output import (
    AsJson,
    RunId,
    confirm,
    print_json,
    print_table,
    words_of_bytes,
    words_of_loss,
    words_of_seconds,
    words_of_time,
)
from engine.paths import LoratoryHome, local_owner

if TYPE_CHECKING:
    from engine.runs.run import Run, State
    from engine.runs.store import RunStore
    from engine.runs.summary import RunSummary
    from engine.runs.table import SortKey


_SETTLE_SECONDS = 15.0


def register(app: typer.Typer) -> None:
    """Add the commands to the `loratory` program."""
    app.command("runs")(list_runs)
    app.command("show")(show)
    app.command("stop")(stop)
    app.command("cancel")(cancel)
    app.command("resume")(resume)
    app.command("delete")(delete)


def list_runs(
    words: Annotated[list[str] | None, typer.Argument(help="Only runs with all these words in name, model, …")] = None,
    state: Annotated[list[str] | None, typer.Option("--state", help="Only runs in this state.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Only runs of this method.")] = None,
    model: Annotated[list[str] | None, typer.Option("--model", help="Only runs on this model.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only runs with this tag; several: with all.")] = None,
    sort: Annotated[str, typer.Option("--sort", help="A column: eval_loss, seconds, size_bytes, name, …")] = "created",
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest, or oldest, first.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="All columns as CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs, newest first."""
    from engine.runs.index import RunIndex
    from engine.runs.table import RunQuery, select_runs, summaries_csv

    store = _store()
    query = RunQuery(
        words=" ".join(words or ()),
        states=_states(state or ()),
        methods=tuple(method or ()),
        models=tuple(model or ()),
        tags=tuple(tag or ()),
        sort=_sort_key(sort),
        descending=not ascending,
    )
    found = select_runs(RunIndex(store).summaries(), query)
    if as_json:
        print_json([_summary_json(store, summary) for summary in found])
    elif as_csv:
        typer.echo(summaries_csv(found), nl=False)
    elif not found:
        restricts = query.words or query.states or query.methods or query.models or query.tags
        print("No such runs." if restricts else "No runs yet. Start one with `loratory train quickstart-cpu`.")
    else:
        print_table(
            ("run", "name", "state", "steps", "loss", "held out", "duration", "size"), [_row(row) for row in found]
        )


def show(
    run_id: RunId,
    as_csv: Annotated[bool, typer.Option("--csv", help="The logged steps as CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one run: its state and why, and its figures."""
    from engine.runs.history.reader import HistoryReader
    from engine.runs.summary import summarize
    from engine.runs.table import steps_csv

    store = _store()
    run = store.get(run_id)
    if as_csv:
        typer.echo(steps_csv(HistoryReader.of_run(run).update()), nl=False)
    elif as_json:
        print_json(_summary_json(store, summarize(run)))
    else:
        print(_description(store.home, run, summarize(run)))


def stop(run_id: RunId, as_json: AsJson = False) -> None:
    """Save what a run has learned so far, and stop it; a waiting run leaves the queue."""
    from engine.runs.control import request_stop

    store = _store()
    run = store.get(run_id)
    request_stop(run)
    _settle(store.home, run, seconds=2.0)
    _print_state(store, run, as_json=as_json)


def cancel(run_id: RunId, as_json: AsJson = False) -> None:
    """End a run at once; its newest checkpoint stays."""
    from engine.runs.control import request_cancel

    store = _store()
    run = store.get(run_id)
    request_cancel(run)
    _settle(store.home, run, seconds=_SETTLE_SECONDS)
    _print_state(store, run, as_json=as_json)


def resume(run_id: RunId, as_json: AsJson = False) -> None:
    """Go on with a run that was stopped, interrupted or failed, from its newest checkpoint, and follow it."""
    from engine.commands.output import ProgressLine
    from engine.commands.train import follow_to_the_end, report
    from engine.runs.control import request_resume

    store = _store()
    run = store.get(run_id)
    request_resume(store.home, run)
    _wait_until_queued(store.home, run)
    report(run, follow_to_the_end(store.home, run, ProgressLine()), as_json=as_json)


def delete(
    run_id: RunId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a run that has ended, with its adapter, checkpoints and log."""
    from engine.runs.store import folder_size_bytes
    from engine.runs.summary import summarize

    store = _store()
    run = store.get(run_id)
    size = words_of_bytes(folder_size_bytes(run.folder.path))
    if run.folder.read_state().is_final:
        confirm(f"Delete {run.id} ({summarize(run).name}, {size})?", given=yes)
    freed = store.delete(run.id)
    if as_json:
        print_json({"run_id": run.id, "status": "deleted", "freed_bytes": freed})
    else:
        print(f"Deleted {run.id}; {words_of_bytes(freed)} are free again.")


def _store() -> "RunStore":
    """The runs of this person, their states brought up to date where no server does so."""
    from engine.runs.store import RunStore
    from engine.runs.supervision.supervisor import reconcile

    home = LoratoryHome.from_environment()
    reconcile(home)
    return RunStore(home, local_owner())


def _settle(home: LoratoryHome, run: "Run", seconds: float) -> None:
    """Give a request a moment to be obeyed."""
    from engine.runs.supervision.supervisor import reconcile

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not run.folder.read_state().is_final:
        time.sleep(0.2)
        reconcile(home)


def _wait_until_queued(home: LoratoryHome, run: "Run") -> None:
    from engine.runs.supervision.supervisor import reconcile

    deadline = time.monotonic() + _SETTLE_SECONDS
    while run.folder.read_state().is_final and time.monotonic() < deadline:
        reconcile(home)
        time.sleep(0.1)


def _states(given: "list[str] | tuple[str, ...]") -> "tuple[State, ...]":
    from typing import get_args

    from engine.runs.run import State

    known: tuple[State, ...] = get_args(State)
    for name in given:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(known)}.", param_hint="--state")
    return tuple(state for state in known if state in given)


def _sort_key(given: str) -> "SortKey":
    from typing import get_args

    from engine.runs.table import SortKey

    known: tuple[SortKey, ...] = get_args(SortKey)
    for name in known:
        if name == given:
            return name
    raise typer.BadParameter(f"{given!r} is not one of {', '.join(known)}.", param_hint="--sort")


def _summary_json(store: "RunStore", summary: "RunSummary") -> dict[str, object]:
    values = summary.model_dump(mode="python")
    return {
        "run_id": summary.id,
        "directory": str(store.folder / summary.id),
        "status": summary.state,
        **values,
        "seconds": summary.seconds,
    }


def _print_state(store: "RunStore", run: "Run", *, as_json: bool) -> None:
    from engine.runs.summary import summarize

    summary = summarize(run)
    if as_json:
        print_json(_summary_json(store, summary))
    else:
        print(f"{run.id} is {summary.state}. {summary.cause} {summary.advice}".rstrip())


def _row(summary: "RunSummary") -> tuple[str, ...]:
    steps = f"{summary.steps:,}" if not summary.total_steps else f"{summary.steps:,} of {summary.total_steps:,}"
    return (
        summary.id,
        summary.name if len(summary.name) <= 40 else f"{summary.name[:39]}…",
        summary.state,
        steps,
        words_of_loss(summary.final_loss),
        words_of_loss(summary.eval_loss),
        words_of_seconds(summary.seconds),
        words_of_bytes(summary.size_bytes),
    )


def _description(home: LoratoryHome, run: "Run", summary: "RunSummary") -> str:
    from engine.runs.electricity import energy_words, read_electricity

    speed = f"{summary.tokens_per_second:,.0f} tokens per second" if summary.tokens_per_second else "–"
    best = f"{words_of_loss(summary.best_eval_loss)} at step {summary.best_step}" if summary.best_step else "–"
    facts = [
        ("state", " ".join(filter(None, (f"{summary.state}.", summary.cause, summary.advice, summary.notice)))),
        ("method", summary.method),
        ("model", summary.model),
        ("dataset", summary.dataset),
        ("device", summary.device or "–"),
        ("created", words_of_time(summary.created)),
        ("duration", words_of_seconds(summary.seconds)),
        ("steps", f"{summary.steps:,} of {summary.total_steps:,}" if summary.total_steps else f"{summary.steps:,}"),
        ("loss", words_of_loss(summary.final_loss)),
        (
            "held-out loss",
            f"{words_of_loss(summary.eval_loss)} (base {words_of_loss(summary.base_eval_loss)}, best {best})",
        ),
        ("speed", speed),
        (
            "peak memory",
            f"{words_of_bytes(summary.peak_memory_bytes)} (foretold {words_of_bytes(summary.predicted_bytes)})",
        ),
        ("size", words_of_bytes(summary.size_bytes)),
        ("electricity", energy_words(summary, read_electricity(home)) or "–"),
        ("tags", ", ".join(summary.tags) or "–"),
        ("folder", str(run.folder.path)),
    ]
    lines = [f"{summary.name}  ({run.id})", *(f"  {label:<15}{value}" for label, value in facts)]
    return "\n".join(lines + ([f"\n{summary.note}"] if summary.note else []))
