"""`loratory votes`: the votes of Chat and the blind test, as a list and as pairs for preference tuning."""

from pathlib import Path
from typing import Annotated

import typer

from engine.commands.output import AsJson, confirm, print_json, print_result, print_table
from engine.errors import RunError, StorageError, shorten
from engine.evaluation.votes import Vote, Votes, pairs_of_votes
from engine.files import write_atomically
from engine.paths import LoratoryHome

votes = typer.Typer(name="votes", help="Votes on answers: list, export as pairs, delete.", no_args_is_help=True)


@votes.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """Show the votes, the newest first."""
    saved_votes = _votes().read()
    if as_json:
        print_json({"votes": [vote.model_dump(mode="json") for vote in saved_votes]})
        return
    if saved_votes:
        print_table(["id", "voted", "in", "preferred", "question"], [_row(vote) for vote in saved_votes])
    typer.echo(f"{len(saved_votes):,} votes give {pairs_of_votes(saved_votes).words}")


@votes.command()
def export(
    file: Annotated[Path, typer.Argument(help="JSON lines to write, with prompt, chosen and rejected.")],
    with_cut_off: Annotated[
        bool, typer.Option("--with-cut-off", help="Keep pairs whose better answer ended at the token limit.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the votes as pairs; ties are left out."""
    if file.exists() and not replace:
        raise StorageError(f"{file} exists.", "Choose another name, or add --replace.")
    pairs = pairs_of_votes(_votes().read(), with_cut_off=with_cut_off)
    if not pairs.rows:
        raise RunError(f"The votes give no pair. {pairs.words}", "Vote in Chat or in the blind test first.")
    write_atomically(file, pairs.json_lines())
    values = {"file": str(file.absolute()), "pairs": len(pairs.rows), "left_out": pairs.left_out}
    print_result(values, f"{file}: {pairs.words}", as_json=as_json)


@votes.command()
def delete(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the list.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Delete every vote.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete votes; datasets that were made of them stay."""
    if bool(ids) == all_:
        raise typer.BadParameter("Give ids, or --all.")
    store = _votes()
    missing = [one for one in ids or () if store.find(one) is None]
    if missing:
        raise RunError(f"Vote not found: {missing[0][:60]}.", "See `loratory votes list`.")
    if all_:
        confirm(f"Delete all {len(store.read()):,} votes?", given=yes)
    removed = store.remove(None if all_ else ids)
    print_result({"deleted": removed}, f"{removed:,} deleted.", as_json=as_json)


def _votes() -> Votes:
    return Votes(LoratoryHome.from_environment())


def _row(vote: Vote) -> list[str]:
    preferred = vote.verdict if vote.is_tie else vote.sides[0].model.name
    question = shorten(" ".join(vote.question.split()), 48)
    return [vote.id, f"{vote.time.astimezone():%Y-%m-%d %H:%M}", vote.source, preferred, question]


COMMANDS = (votes,)
