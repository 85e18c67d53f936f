"""`loratory evaluate`: base against tuned on the rows that a run held out; `check`: a server against a run; `votes`: of people."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from loratory.engine.chat.contract import Branch, ChatTarget
from loratory.engine.commands.data import DataArgument, ScorerOption, data_group, scorers_of
from loratory.engine.commands.output import (
    AsJson,
    CheckpointName,
    KeyVariable,
    RunId,
    WorkWhere,
    Yes,
    confirm,
    key_from,
    own_runs,
    print_json,
    print_result,
    print_table,
    setting_options,
    with_progress,
)
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.results import EvaluationConfig, TestSet
from loratory.engine.data.source import HUMAN_EVAL
from loratory.engine.errors import RunError, StorageError, shorten
from loratory.engine.evaluation.job import (
    EvaluationJob,
    EvaluationRequest,
    EvaluationResult,
    comparison_table,
    describe_forgetting,
    describe_gain,
    preference_sentences,
)
from loratory.engine.evaluation.samples import describe_test
from loratory.engine.evaluation.server_check import ServerCheckConfig, ServerCheckJob, describe_check
from loratory.engine.evaluation.votes import Vote, Votes, pairs_of_votes
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome

_OF_CODE = {"scorer": "code_tests", "column": "test", "before_column": "prompt"}
_HUMAN_EVAL = {"source": HUMAN_EVAL, "scorers": [_OF_CODE], "max_new_tokens": 512}
_NAMES: Mapping[Branch, str] = {"base": "base", "second": "start", "tuned": "tuned"}


@setting_options(
    EvaluationConfig,
    max_rows="--rows",
    answered_rows="--answers",
    max_new_tokens="--max-tokens",
    general_text="--forgetting/--no-forgetting",
)
def evaluate(
    run: RunId,
    settings: dict[str, Any],
    test: Annotated[
        list[str] | None, typer.Option("--test", help="A dataset of prompts that both answer, any number of times.")
    ] = None,
    scorer: ScorerOption = None,
    lm_eval: Annotated[
        str, typer.Option("--lm-eval", help="Tasks of lm-eval, or YAML files of tasks, separated by commas.")
    ] = "",
    checkpoint: CheckpointName = None,
    where: WorkWhere = "local",
    as_json: AsJson = False,
) -> None:
    """Measure base and tuned on the held-out rows and on test sets, and let both answer some of them."""
    config = section_from_mapping(EvaluationConfig, settings)
    tests = tuple(_test_set(source, scorer or []) for source in test or ())
    store = own_runs()
    target = ChatTarget.of_run(store.get(run).folder.path, checkpoint).model_copy(update={"where": where})
    tasks = tuple(filter(None, lm_eval.split(",")))
    request = EvaluationRequest(target=target, settings=config, tests=tests, lm_eval=tasks)
    result = with_progress(EvaluationJob(store.home, request).run)
    if as_json:
        values = result.model_dump(mode="json")
        print_json(values.pop("losses") | values | {"gained": result.gain, "forgot": result.forgetting})
    else:
        _report(result)


@setting_options(ServerCheckConfig, url="--url", model="--model", max_new_tokens="--max-tokens")
def check(
    run: RunId,
    settings: dict[str, Any],
    key_variable: KeyVariable = "",
    checkpoint: CheckpointName = None,
    as_json: AsJson = False,
) -> None:
    """Compare the answers of an OpenAI-compatible server with those of a run, and name what differs.

    Exits with 1 unless they are the same.
    """
    config, key = section_from_mapping(ServerCheckConfig, settings), key_from(key_variable)
    store = own_runs()
    target = ChatTarget.of_run(store.get(run).folder.path, checkpoint)
    result = with_progress(ServerCheckJob(store.home, target, config, key).run)
    values = result.model_dump(mode="json") | {"findings": [finding._asdict() for finding in result.findings]}
    print_result(values, "\n".join(describe_check(result)), as_json=as_json)
    raise typer.Exit(int(not result.is_same))


def _test_set(source: str, scorers: list[str]) -> TestSet:
    if source == HUMAN_EVAL and not scorers:
        return section_from_mapping(TestSet, _HUMAN_EVAL)
    return section_from_mapping(TestSet, {"source": source, "scorers": scorers_of(scorers or ["equals"])})


@data_group.command()
def losses(
    source: DataArgument,
    run: Annotated[str, typer.Option("--run", help="Whose base and tuned model read the rows: its id.")],
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Rows to measure, spread evenly.")] = None,
    checkpoint: CheckpointName = None,
    as_json: AsJson = False,
) -> None:
    """List the rows that are likeliest, most surprising, worse than before or still hard for the tuned model."""
    store, values = own_runs(), {"max_rows": rows, "answered_rows": 0, "general_text": False, "source": source}
    target = ChatTarget.of_run(store.get(run).folder.path, checkpoint)
    request = EvaluationRequest(target=target, settings=section_from_mapping(EvaluationConfig, values))
    result = with_progress(EvaluationJob(store.home, request).run)
    answer = result.model_dump(mode="json", include={"source", "rows", "losses", "lists", "notes"})
    print_result(answer, "\n".join(_lists(result)), as_json=as_json)


def _lists(result: EvaluationResult) -> Iterator[str]:
    yield from (f"{result.source}: {result.rows:,} rows.", *result.notes)
    for name, rows in result.lists.items():
        yield f"\n{name.capitalize()}{':' if rows else ': none'}"
        for row in rows:
            yield f"  {row.base:8.4f} → {row.tuned:8.4f}  row {row.row + 1:,}: {_in_a_line(''.join(row.pieces))}"


def _report(result: EvaluationResult) -> None:
    header, rows = comparison_table(result)
    if rows:
        print_table(["", *header], [[_NAMES[branch], *cells] for branch, cells in rows.items()])
        tokens = next(iter(result.losses.values())).tokens
        typer.echo(f"{result.rows:,} held-out rows, {tokens:,} tokens; {len(result.answered_rows)} answered.")
    for sentence in preference_sentences(result):
        typer.echo(sentence)
    if result.gain is not None and result.forgetting is not None:
        base, tuned = result.general_losses["base"], result.general_losses["tuned"]
        typer.echo(
            f"{describe_gain(result.gain)}, {describe_forgetting(result.forgetting, result.forgetting_interval)}: loss on "
            f"general text {base.loss:.4f} before, {tuned.loss:.4f} after ({tuned.tokens:,} tokens)."
        )
    for test in result.tests:
        for sentence in describe_test(test, _NAMES):
            typer.echo(sentence)
    for name, value in result.lm_eval.get("tuned", {}).items():
        typer.echo(f"{name}: base {result.lm_eval['base'][name]:.4f}, tuned {value:.4f} (lm-eval).")
    for note in result.notes:
        typer.echo(note)
    for row in result.answered_rows[:3]:
        typer.echo(f"\nrow {row.row + 1:,}: {_in_a_line(row.reference)}")
        for branch, answer in row.answers.items():
            typer.echo(f"  {_NAMES[branch]} (chrF {answer.scores.chrf:.2f}): {_in_a_line(answer.text)}")


def _in_a_line(text: str) -> str:
    return shorten(" ".join(text.split()))


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
    typer.echo(f"{len(saved_votes):,} votes give {pairs_of_votes(saved_votes).summary}")


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
        raise RunError(f"The votes give no pair. {pairs.summary}", "Vote in Chat or in the blind test first.")
    write_atomically(file, pairs.json_lines())
    values = {"file": str(file.absolute()), "pairs": len(pairs.rows), "left_out": pairs.left_out}
    print_result(values, f"{file}: {pairs.summary}", as_json=as_json)


@votes.command()
def delete(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the list.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Delete every vote.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete votes; datasets that were made of them stay."""
    if bool(ids) == all_:
        raise typer.BadParameter("Give ids, or --all.")
    store = _votes()
    missing = [vote_id for vote_id in ids or () if store.find(vote_id) is None]
    if missing:
        raise RunError(f"Vote not found: {missing[0][:60]}.", "See `loratory votes list`.")
    if all_:
        confirm(f"Delete all {len(store.read()):,} votes?", yes=yes)
    removed = store.remove(None if all_ else ids)
    print_result({"deleted": removed}, f"{removed:,} deleted.", as_json=as_json)


def _votes() -> Votes:
    return Votes(LoratoryHome.from_environment())


def _row(vote: Vote) -> list[str]:
    choice = vote.verdict if vote.is_tie else vote.sides[0].model.name
    question = shorten(" ".join(vote.question.split()), 48)
    return [vote.id, f"{vote.time.astimezone():%Y-%m-%d %H:%M}", vote.source, choice, question]


COMMANDS = (evaluate, check, votes)
