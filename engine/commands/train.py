"""`loratory train` and `sweep`: start runs, follow them to their end, print their results."""

import contextlib
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from loratory.engine.commands.output import (
    AsJson,
    ConfigName,
    Overrides,
    ProgressLine,
    Where,
    format_loss,
    format_memory,
    format_time,
    or_dash,
    own_runs,
    print_json,
    print_result,
    print_table,
    with_where,
)
from loratory.engine.errors import RunError, shorten
from loratory.engine.interface.names import load_config_mapping
from loratory.engine.interface.workspace import Run, Workspace
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import duration, size
from loratory.engine.runs.history.run_history import RunHistory, seconds_left
from loratory.engine.runs.summary import RunIndex, RunSummary, common_tests
from loratory.engine.runs.sweep import sweep_configs
from loratory.engine.runs.sweep_result import sweep_result
from loratory.engine.runs.usage import energy_words, read_electricity
from loratory.engine.supervision.scheduler import SupervisorSettings

_ENDED_WELL = ("completed", "stopped")
_REPORTED = set(
    "cause advice steps total_steps final_loss base_eval_loss eval_loss best_eval_loss best_step preference_accuracy "
    "tokens_per_second peak_memory_bytes predicted_bytes".split()
)


def train(
    config: ConfigName = "",
    overrides: Overrides = None,
    where: Where = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Names this request: the same key never starts a second run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, with progress on stderr. The run continues when this command is killed; Ctrl+C saves and stops it."""
    with ProgressLine() as line, Workspace.own() as workspace:
        run = workspace.train(config, with_where(overrides, where), key=key, wait=False, on_progress=line.show)
    line.say(f"Run {run.id}")
    report(run, follow_to_the_end(run, line), as_json=as_json)


def follow_to_the_end(run: Run, line: ProgressLine, settings: SupervisorSettings | None = None) -> RunSummary:
    """Show a run's progress until it has ended, supervising it where no server does.

    The first Ctrl+C asks the run to save and stop, the second detaches.

    Raises:
        RunError: If its folder is gone.
        KeyboardInterrupt: At the second Ctrl+C; the run continues, and a server or the next command finds it.
    """
    shown_until, last_history, known_findings = time.time(), RunHistory.model_construct(), set[str]()
    note_server = partial(line.say, "A running Loratory server executes it; it continues without this command.")
    try:
        with (
            _interrupt_asks_to_stop(run, line),  # before the run may begin
            contextlib.closing(run.follow(settings, note_server)) as progress,
        ):
            for state, history in progress:
                for message in history.messages:
                    if message.time > shown_until and message.kind == "warning":
                        line.say(f"Warning: {message.text}")
                    shown_until = max(shown_until, message.time)
                for finding in run.findings(history) if history is not last_history else ():
                    if finding.fix and finding.name not in known_findings:
                        line.say(f"Warning: {finding.text}")
                    known_findings.add(finding.name)
                last_history = history
                if not state.is_final:
                    _show(line, state.state, state.cause, history)
    finally:
        line.clear()
    return run.summary


def report(run: Run, summary: RunSummary, *, as_json: bool) -> None:
    """Print what came out.

    Raises:
        RunError: If the run failed or was interrupted, after the figures were printed.
    """
    if as_json:
        print_json(result_json(run.folder, summary))
    elif summary.state in _ENDED_WELL:
        print(describe(run, summary, LoratoryHome.locate()))
        if summary.state == "completed":
            print(f"Chat with it: loratory chat {run.id}")
    if summary.state not in _ENDED_WELL:
        raise RunError(summary.cause or f"The run {summary.state}.", summary.advice or "See its log.")


def result_json(folder: Path, summary: RunSummary, include: set[str] | None = _REPORTED) -> dict[str, Any]:
    """Return the JSON object of a run in a folder, with the figures of `train` or, by None, with all."""
    location = {"run_id": summary.id, "directory": str(folder), "status": summary.state}
    return location | summary.model_dump(include=include) | {"seconds": summary.seconds}


def describe(run: Run, summary: RunSummary, home: LoratoryHome) -> str:
    """Return the state of a run and all its figures, for people."""
    speed = f"{summary.tokens_per_second:,.0f} tokens per second" if summary.tokens_per_second else "–"
    best = f"{format_loss(summary.best_eval_loss)} at step {summary.best_step}" if summary.best_step else "–"
    base_loss, predicted = format_loss(summary.base_eval_loss), format_memory(summary.predicted_bytes)
    accuracy = summary.preference_accuracy
    facts = [
        ("state", " ".join(filter(None, (f"{summary.state}.", summary.cause, summary.advice)))),
        ("method", ", ".join(filter(None, (summary.method, summary.objective)))),
        ("model", summary.model),
        ("dataset", summary.dataset),
        ("device", summary.device or "–"),
        ("created", format_time(summary.created)),
        ("duration", or_dash(summary.seconds, duration)),
        ("steps", _steps(summary)),
        ("loss", format_loss(summary.final_loss)),
        ("held-out loss", f"{format_loss(summary.eval_loss)} (base {base_loss}, best {best})"),
        *([] if accuracy is None else [("prefers", f"the better answer of {accuracy:.0%} of the held-out pairs")]),
        *(
            (f"score {score.score:.2f}", f"{test}, 95% interval {score.interval}")
            for test, score in summary.tests.items()
        ),
        ("speed", speed),
        ("peak memory", f"{format_memory(summary.peak_memory_bytes)} (predicted {predicted})"),
        ("size", size(summary.size_bytes)),
        ("electricity", energy_words(summary, read_electricity(home)) or "–"),
        ("project", summary.project or "–"),
        ("tags", ", ".join(summary.tags) or "–"),
        ("folder", str(run.folder)),
    ]
    lines = [f"{summary.name}  ({run.id})", *(f"  {label:<15}{value}" for label, value in facts)]
    return "\n".join(lines + ([f"\n{summary.note}"] if summary.note else []))


def print_runs(summaries: Sequence[RunSummary]) -> None:
    """Print a table of runs."""
    tests = common_tests(summaries)
    header = ("run", "name", "state", "steps", "loss", "held out", *tests, "duration", "size")
    rows = [
        (
            summary.id,
            f"{'★ ' if summary.star else ''}{shorten(summary.name, 40)}",
            summary.state,
            _steps(summary),
            format_loss(summary.final_loss),
            format_loss(summary.eval_loss),
            *(f"{summary.tests[test].score:.2f}" if test in summary.tests else "–" for test in tests),
            or_dash(summary.seconds, duration),
            size(summary.size_bytes),
        )
        for summary in summaries
    ]
    print_table(header, rows)


def _steps(summary: RunSummary) -> str:
    return f"{summary.steps:,} of {summary.total_steps:,}" if summary.total_steps else f"{summary.steps:,}"


def _show(line: ProgressLine, state: str, cause: str, history: RunHistory) -> None:
    total, step = history.total_steps, history.last_step
    if cause:
        line.show(cause)
    elif state == "queued":
        line.show("Queued.")
    elif step == 0 or not total:
        message = history.status.message if history.status is not None else ""
        line.show(message or "Starting the worker.")
    else:
        parts = [f"step {step:,} of {total:,}", f"loss {format_loss(history.steps.last('loss'))}"]
        if history.tuned_evals:
            parts.append(f"held out {format_loss(history.tuned_evals[-1].eval_loss)}")
            if (accuracy := history.tuned_evals[-1].preference_accuracy) is not None:
                parts.append(f"prefers {accuracy:.0%}")
        seconds = seconds_left(history)
        if step >= total and history.status is not None and history.status.message:
            parts.append(history.status.message)
        elif seconds is not None:
            parts.append(f"{duration(seconds)} left")
        line.show(" · ".join(parts), step / total)


@contextlib.contextmanager
def _interrupt_asks_to_stop(run: Run, line: ProgressLine) -> Iterator[None]:
    def handle_interrupt(_number: int, _frame: object) -> None:
        if run.is_asked_to_stop:
            raise KeyboardInterrupt
        with contextlib.suppress(RunError):  # it has just ended by itself
            run.stop()
        line.say("Saving and stopping. Press Ctrl+C again to detach; the run continues.")

    before = signal.signal(signal.SIGINT, handle_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def sweep(
    config: ConfigName,
    axes: Annotated[
        list[str] | None, typer.Option("--over", help="section.field=value,value,… any number of times.")
    ] = None,
    overrides: Overrides = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Train every combination of some settings, such as --over adapter.r=8,16; or, with a sweep's id alone, show its result."""
    store = own_runs()
    if not axes:
        result = sweep_result(RunIndex(store).summaries(), config)
        if result is None:
            raise RunError(f"There is no sweep {shorten(config)!r}.", "To start one, add --over field=value,value.")
        losses = "\n".join(f"  {combination.loss or '–'}  {combination.label}" for combination in result.combinations)
        print_result(result, f"{result.conclusion}\n{losses}", as_json=as_json)
        return
    configs = sweep_configs(load_config_mapping(config, with_where(overrides, where), store.home), axes)
    with ProgressLine() as line, Workspace.own() as workspace:
        runs = workspace.sweep(configs, secrets.token_hex(16), on_progress=line.show)
    sweep_id = runs[0].summary.sweep
    line.say(f"Queued {len(runs)} runs. Their result: loratory sweep {sweep_id}")
    results: list[tuple[Run, RunSummary]] = []
    for number, run in enumerate(runs, start=1):
        line.say(f"Run {number} of {len(runs)}: {run.id}")
        results.append((run, follow_to_the_end(run, line)))
    if as_json:
        print_json([{"name": summary.name, **result_json(run.folder, summary)} for run, summary in results])
    else:
        print_runs([summary for _, summary in results])
        sweep(sweep_id)
    failures = [summary for _, summary in results if summary.state not in _ENDED_WELL]
    if failures:
        what = f"{len(failures)} of {len(runs)} runs failed or were interrupted."
        raise RunError(what, f"See `loratory show {failures[0].id}`.")


COMMANDS = (train, sweep)
