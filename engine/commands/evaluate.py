"""`loratory evaluate`: base against tuned on the rows that a run held out."""

from typing import Annotated

import typer

from engine.chat.contract import Branch, ChatTarget
from engine.commands.output import (
    AsJson,
    CheckpointName,
    RunId,
    WorkWhere,
    own_runs,
    print_json,
    print_table,
    setting_option,
    with_progress,
)
from engine.config.load import section_from_mapping
from engine.config.results import EvaluationConfig
from engine.errors import shorten
from engine.evaluation.job import (
    EvaluationJob,
    EvaluationRequest,
    EvaluationResult,
    forgetting_words,
    gain_words,
    preference_sentences,
)
from engine.evaluation.preference import RATING_COLUMNS, rating_cells


def evaluate(
    run: RunId,
    checkpoint: CheckpointName = None,
    rows: Annotated[int | None, setting_option(EvaluationConfig, "max_rows", "--rows")] = None,
    answers: Annotated[int | None, setting_option(EvaluationConfig, "answered_rows", "--answers")] = None,
    max_tokens: Annotated[int | None, setting_option(EvaluationConfig, "max_new_tokens", "--max-tokens")] = None,
    general_text: Annotated[
        bool | None, setting_option(EvaluationConfig, "general_text", "--forgetting/--no-forgetting")
    ] = None,
    where: WorkWhere = "local",
    as_json: AsJson = False,
) -> None:
    """Measure base and tuned on the held-out rows, and let both answer some of them."""
    overrides = {
        "max_rows": rows,
        "answered_rows": answers,
        "max_new_tokens": max_tokens,
        "general_text": general_text,
    }
    settings = section_from_mapping(EvaluationConfig, overrides)
    store = own_runs()
    target = ChatTarget.of_run(store.get(run).folder.path, checkpoint).model_copy(update={"where": where})
    result = with_progress(EvaluationJob(store.home, EvaluationRequest(target=target, settings=settings)).run)
    if as_json:
        values = result.model_dump(mode="json")
        print_json(values.pop("losses") | values | {"gained": result.gain, "forgot": result.forgetting})
    else:
        _report(result)


def _report(result: EvaluationResult) -> None:
    header = ["", "loss", "perplexity"]
    table = [
        [_name(branch), f"{measured.loss:.4f}", f"{measured.perplexity:.2f}"]
        for branch, measured in result.losses.items()
    ]
    if result.scores:
        header += ["exact", "ROUGE-L", "chrF"]
        for row, scores in zip(table, result.scores.values(), strict=True):
            row += [f"{scores.exact:.0%}", f"{scores.rouge_l:.3f}", f"{scores.chrf:.3f}"]
    if (preference := result.preference) is not None:
        header += ["chosen likelier", "per token", "margin"]
        for row, measured in zip(table, (preference.branches[branch] for branch in result.losses), strict=True):
            row += [
                f"{measured.preferred / preference.pairs:.0%}",
                f"{measured.preferred_per_token / preference.pairs:.0%}",
                f"{measured.margin:.2f}",
            ]
    if (ratings := result.ratings) is not None:
        header += [name.lower() for name in RATING_COLUMNS]
        for row, branch in zip(table, result.losses, strict=True):
            row += (
                rating_cells(ratings.branches[branch], ratings)
                if branch in ratings.branches
                else ["–"] * len(RATING_COLUMNS)
            )
    print_table(header, table)
    tokens = next(iter(result.losses.values())).tokens
    typer.echo(f"{result.rows:,} held-out rows, {tokens:,} tokens; {len(result.answered)} answered.")
    for sentence in preference_sentences(result):
        typer.echo(sentence)
    if result.gain is not None and result.forgetting is not None:
        base, tuned = result.general_losses["base"], result.general_losses["tuned"]
        typer.echo(
            f"{gain_words(result.gain)}, {forgetting_words(result.forgetting)}: loss on general text {base.loss:.4f} before, "
            f"{tuned.loss:.4f} after ({tuned.tokens:,} tokens)."
        )
    for note in result.notes:
        typer.echo(note)
    for answered in result.answered[:3]:
        typer.echo(f"\nrow {answered.row + 1:,}: {_in_a_line(answered.reference)}")
        for branch, answer in answered.answers.items():
            typer.echo(f"  {_name(branch)} (chrF {answer.scores.chrf:.2f}): {_in_a_line(answer.text)}")


def _name(branch: Branch) -> str:
    return "start" if branch == "second" else branch


def _in_a_line(text: str) -> str:
    return shorten(" ".join(text.split()))


COMMANDS = (evaluate,)
