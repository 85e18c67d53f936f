"""`loratory evaluate`: base against tuned on the rows that a run held out."""

from typing import Annotated

import typer

from engine.chat.contract import ChatTarget
from engine.commands.output import AsJson, CheckpointName, ProgressLine, print_json, print_table
from engine.config.results import EvaluationConfig
from engine.evaluation.contract import EvaluationRequest, EvaluationResult
from engine.paths import LoratoryHome, local_owner
from engine.runs.store import RunStore

_SAMPLE_CHARACTERS = 60


def register(app: typer.Typer) -> None:
    """Add the command to the `loratory` program."""
    app.command("evaluate")(evaluate)


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the last characters of it.")],
    checkpoint: CheckpointName = None,
    rows: Annotated[
        int | None, typer.Option("--rows", help=EvaluationConfig.model_fields["max_rows"].description)
    ] = None,
    answers: Annotated[
        int | None, typer.Option("--answers", help=EvaluationConfig.model_fields["answered_rows"].description)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help=EvaluationConfig.model_fields["max_new_tokens"].description)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure base and tuned on the held-out rows, and let both answer some of them."""
    from engine.config.load import section_from_mapping
    from engine.evaluation.job import EvaluationJob

    values = {"max_rows": rows, "answered_rows": answers, "max_new_tokens": max_tokens}
    settings = section_from_mapping(
        EvaluationConfig, {key: value for key, value in values.items() if value is not None}
    )
    home = LoratoryHome.from_environment()
    target = ChatTarget.of_run(RunStore(home, local_owner()).get(run).folder.path, checkpoint)
    line = ProgressLine()
    try:
        result = EvaluationJob(home, EvaluationRequest(target=target, settings=settings)).run(
            lambda progress: line.show(progress.message, progress.fraction)
        )
    finally:
        line.clear()
    if as_json:
        print_json(as_object(result))
    else:
        _report(result)


def as_object(result: EvaluationResult) -> dict[str, object]:
    """The JSON of the command: losses by branch at the top, as the table of commands has it."""
    values = result.model_dump(mode="json")
    losses = values.pop("losses")
    return {**losses, **values}


def _report(result: EvaluationResult) -> None:
    header = ["", "loss", "perplexity"]
    table = [
        [branch, f"{measured.loss:.4f}", f"{measured.perplexity:.2f}"] for branch, measured in result.losses.items()
    ]
    if result.scores:
        header += ["exact", "ROUGE-L", "chrF"]
        for row, scores in zip(table, result.scores.values(), strict=True):
            row += [f"{scores.exact:.0%}", f"{scores.rouge_l:.3f}", f"{scores.chrf:.3f}"]
    print_table(header, table)
    tokens = next(iter(result.losses.values())).tokens
    typer.echo(f"{result.rows:,} held-out rows, {tokens:,} tokens; {len(result.answered)} answered.")
    for note in result.notes:
        typer.echo(note)
    for answered in result.answered[:3]:
        typer.echo(f"\nrow {answered.row}: {_short(answered.reference)}")
        for branch, answer in answered.answers.items():
            typer.echo(f"  {branch} (chrF {answer.scores.chrf:.2f}): {_short(answer.text)}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SAMPLE_CHARACTERS else f"{line[: _SAMPLE_CHARACTERS - 1]}…"
