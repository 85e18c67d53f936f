"""`loratory rename, note, tag, move, start-anyway, electricity`: notes, order and cost of runs."""

from typing import Annotated, Any

import typer

from engine.commands.output import AsJson, RunId, one_of, own_runs, print_result
from engine.errors import RunError
from engine.paths import LoratoryHome
from engine.runs.control import change_notes, read_notes, request_start_anyway
from engine.runs.electricity import read_electricity, save_electricity
from engine.runs.run import Run
from engine.runs.supervision.queue import QueueMove, QueueOrder


def rename(
    run_id: RunId,
    name: Annotated[str, typer.Argument(help='What to call it; "" gives it back its first name.')],
    as_json: AsJson = False,
) -> None:
    """Call a run something else; its configuration stays as it is."""
    _change(own_runs().get(run_id), as_json, name=name)


def note(
    run_id: RunId,
    text: Annotated[str, typer.Argument(help='What to remember about it; "" removes the note.')],
    as_json: AsJson = False,
) -> None:
    """Keep a note with a run."""
    _change(own_runs().get(run_id), as_json, note=text)


def tag(
    run_id: RunId,
    tags: Annotated[list[str], typer.Argument(help="Tags to add, or to remove.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add tags to a run, or remove them; `loratory runs TAG` finds it by them."""
    run = own_runs().get(run_id)
    before = read_notes(run.folder).tags
    after = tuple(known for known in before if known not in tags) if remove else (*before, *tags)
    _change(run, as_json, tags=after)


def move(
    run_id: RunId, where: Annotated[str, typer.Argument(help="first, up, down or last.")], as_json: AsJson = False
) -> None:
    """Move a waiting run within the queue."""
    direction: QueueMove = one_of(where, QueueMove, "WHERE")
    store = own_runs()
    run = store.get(run_id)
    waiting = [known.id for known in store.list() if known.folder.read_state().state == "queued"]
    if run.id not in waiting:
        raise RunError(f"{run.id} is {run.folder.read_state().state} and does not wait.", "Only waiting runs move.")
    order = QueueOrder(store.home).shift(run.id, waiting, direction)
    text = "\n".join(f"{place}. {known}" for place, known in enumerate(order, start=1))
    print_result({"queue": order}, text, as_json=as_json)


def start_anyway(run_id: RunId, as_json: AsJson = False) -> None:
    """Let a waiting run start although the free memory does not cover its estimate."""
    run = own_runs().get(run_id)
    request_start_anyway(run)
    text = f"{run.id} starts as soon as its device is free of other Loratory work. It may run out of memory."
    print_result({"run_id": run.id, "start_anyway": True}, text, as_json=as_json)


def electricity(
    price: Annotated[float | None, typer.Option("--price", help="Of one kilowatt-hour; 0 for none.")] = None,
    currency: Annotated[str | None, typer.Option("--currency", help="A sign or a code, such as EUR.")] = None,
    watts: Annotated[
        float | None, typer.Option("--watts", help="What the machine draws where no GPU measures it; 0 for unknown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show or set the price of electricity, from which runs compute their cost."""
    home = LoratoryHome.from_environment()
    known = read_electricity(home)
    if price is not None or currency is not None or watts is not None:
        known = save_electricity(
            home,
            known.price_per_kwh if price is None else price or None,
            known.currency if currency is None else currency,
            known.watts if watts is None else watts or None,
        )
    cost = "no price is set" if known.price_per_kwh is None else f"{known.currency} {known.price_per_kwh:g} a kWh"
    power = "unknown where no GPU measures it" if known.watts is None else f"{known.watts:g} W where none measures"
    print_result(known, f"price: {cost.strip()}\npower: {power}", as_json=as_json)


def _change(run: Run, as_json: bool, **changes: Any) -> None:
    notes = change_notes(run.folder, **changes)
    tags = f" [{', '.join(notes.tags)}]" if notes.tags else ""
    text = f"{run.id}: {notes.name or 'no name of its own'}{tags}{f' – {notes.note}' if notes.note else ''}"
    print_result({"run_id": run.id, **notes.model_dump()}, text, as_json=as_json)


COMMANDS = (rename, note, tag, move, start_anyway, electricity)
