"""`loratory sweep`: every combination of a few settings, filed at once and executed one after the other."""

from typing import TYPE_CHECKING, Annotated

import typer

from engine.commands.output import ProgressLine, print_json, print_table, words_of_loss, words_of_seconds
from engine.errors import RunError
from engine.paths import LoratoryHome, local_owner

if TYPE_CHECKING:
    from engine.runs.run import Run
    from engine.runs.summary import RunSummary


def register(app: typer.Typer) -> None:
    """Add the command to the `loratory` program."""
    app.command("sweep")(sweep)


def sweep(
    config: Annotated[str, typer.Argument(help="A YAML file, a preset's name, or a run's id.")],
    axes: Annotated[list[str], typer.Option("--over", help="section.field=value,value,… any number of times.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value for all of them, any number of times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")] = False,
) -> None:
    """Train every combination of some settings, such as --over adapter.r=8,16 --over training.learning_rate=1e-4,2e-4."""
    from engine.commands.configs import load_config_mapping
    from engine.commands.train import follow_to_the_end, result_json
    from engine.inspector.session import Inspector
    from engine.runs.preflight import Preflight
    from engine.runs.store import RunStore
    from engine.runs.sweep import sweep_configs

    home = LoratoryHome.from_environment()
    configs = sweep_configs(load_config_mapping(config, tuple(overrides or ()), home), axes)
    line = ProgressLine()
    inspector = Inspector(home)
    try:
        preflight = Preflight(home, inspector)
        checked = [preflight.check(one, line.show) for one in configs]  # all of them before the first is filed
    finally:
        inspector.close()
        line.clear()
    store = RunStore(home, local_owner())
    runs = [store.create(one.config, one.provenance, report=one.report) for one in checked]
    line.say(f"Filed {len(runs)} runs.")
    results: list[tuple[Run, RunSummary]] = []
    for number, run in enumerate(runs, start=1):
        line.say(f"Run {number} of {len(runs)}: {run.id}")
        results.append((run, follow_to_the_end(home, run, line)))
    if as_json:
        print_json([{"name": summary.name, **result_json(run, summary)} for run, summary in results])
    else:
        _print_results([summary for _, summary in results])
    failed = [summary for _, summary in results if summary.state not in ("completed", "stopped")]
    if failed:
        raise RunError(f"{len(failed)} of {len(runs)} runs did not end well.", f"See `loratory show {failed[0].id}`.")


def _print_results(summaries: "list[RunSummary]") -> None:
    from engine.runs.table import best_by_held_out_loss

    best = best_by_held_out_loss(summaries)
    rows = [
        (
            summary.id,
            summary.name,
            summary.state,
            words_of_loss(summary.best_eval_loss),
            words_of_seconds(summary.seconds),
            "best" if summary is best else "",
        )
        for summary in summaries
    ]
    print_table(("run", "name", "state", "held out", "duration", ""), rows)
