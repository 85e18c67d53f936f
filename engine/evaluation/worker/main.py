"""The process that evaluates: `python -P -m loratory.engine.evaluation.worker.main HOME`, JSON lines on stdio."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from loratory.engine.chat.contract import Branch, JobProgress
from loratory.engine.chat.worker.answer import load_chat_tokenizer
from loratory.engine.chat.worker.weights import BranchWeights, ModelSpec, Weights, choose_dtype, memory_errors
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import RunConfig
from loratory.engine.data.hub import reads_from_hub
from loratory.engine.data.passes.prepare import PreparedDataset, prepare_dataset, spread_evenly
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.errors import DatasetError
from loratory.engine.evaluation.general_text import general_rows
from loratory.engine.evaluation.job import MOST_ROW_LOSSES, BranchLoss, EvaluationOrder, EvaluationResult, RowLoss
from loratory.engine.evaluation.preference import (
    PairLikelihoods,
    PreferenceResult,
    RatingResult,
    measure_preference,
    measure_ratings,
)
from loratory.engine.evaluation.worker.answers import Evaluation, answer_rows
from loratory.engine.evaluation.worker.scores import mean_scores
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import JsonObject, Request, serve
from loratory.engine.processes.spawn import Access, give_up_access
from loratory.engine.training.batching.probe import losses_match
from loratory.engine.training.failure import is_out_of_memory

_TOKENS_AT_ONCE = 4096  # of rows that a GPU reads together


class EvaluationWorker:
    """Runs the orders of `loratory.engine.evaluation.job`."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home

    def evaluate(self, params: JsonObject, request: Request) -> JsonObject:
        """Compute losses on the held-out rows, then answer some of them with every branch."""
        start = time.perf_counter()
        order = EvaluationOrder.model_validate(params)
        home = order.plan.home(self._home)
        source = resolve_model(order.plan.model, home)
        if not reads_from_hub(order.run.dataset):
            give_up_access(Access.HUB)
        folder = Path(source.location)
        folders = [weights.folder for weights in order.plan.trained_weights.values()]
        tokenizer = load_chat_tokenizer(folders, folder, source.name)

        def announce(message: str) -> None:
            request.progress(JobProgress(phase="starting", message=message).model_dump(mode="json"))

        announce("Reading the held-out rows.")
        training, objective = order.run.training, objective_of(order.run)
        data = prepare_dataset(
            order.run.dataset,
            seed=training.seed,
            max_length=training.max_length,
            tokenizer=tokenizer,
            home=home,
            objective=objective if objective.learns_preferences else None,
        )
        if not data.held_out:
            fix = "Train with dataset.eval_fraction above 0."
            raise DatasetError("This run has no held-out rows, so there is nothing to measure on.", fix)
        give_up_access(Access.HUB)
        rows = spread_evenly(data.held_out, order.settings.max_rows)
        spec = ModelSpec(folder, source.name, order.device, choose_dtype(order.plan.model, order.device))
        asks_general = order.settings.general_text
        evaluation = Evaluation(order, request, Weights(order.plan, spec, announce), tokenizer)
        with memory_errors(spec), torch.inference_mode():
            row_losses = _row_losses(evaluation, rows, "the loss, row")
            desirable = [number for number, row in enumerate(rows) if row.desirable is not False]
            numbers = desirable or range(len(rows))
            losses = _mean_losses(
                {branch: [losses[number] for number in numbers] for branch, losses in row_losses.items()},
                [rows[number] for number in numbers],
            )
            by_row = _losses_by_row(row_losses, rows)
            preference = _measure_preference(evaluation, rows, row_losses)
            ratings = _measure_ratings(order.run, rows, row_losses)
            texts = general_rows(tokenizer) if asks_general else []
            general = _mean_losses(_row_losses(evaluation, texts, "forgetting, text"), texts) if texts else {}
            answered_rows = answer_rows(evaluation, [rows[number] for number in desirable])
        result = EvaluationResult(
            losses=losses,
            rows=len({rows[number].row for number in numbers}),
            scores={
                branch: mean_scores([row.answers[branch].scores for row in answered_rows])
                for branch in losses
                if answered_rows
            },
            answered_rows=tuple(sorted(answered_rows, key=lambda row: row.answers["tuned"].scores.chrf)),
            row_losses=tuple(spread_evenly(by_row, MOST_ROW_LOSSES)),
            seconds=time.perf_counter() - start,
            notes=(
                *order.plan.notes,
                *order.plan.base_changes(folder, source.name, self._home),
                *_about_rows(order, has_desirable=bool(desirable)),
                *_changes(data, order.data_fingerprint),
            ),
            general_losses=general,
            preference=preference,
            ratings=ratings,
            start=order.plan.second.name if order.plan.second is not None else "",
        )
        return result.model_dump(mode="json")


def _about_rows(order: EvaluationOrder, *, has_desirable: bool) -> tuple[str, ...]:
    objective = objective_of(order.run)
    if not objective.learns_preferences:
        return ()
    notes = ["The rows say which answer is better. Losses are those of the chosen or desirable answers."]
    if not has_desirable:
        notes = ["Every held-out completion is undesirable: the losses are theirs, so a lower one is not better."]
    if objective.has_reference and _start_of(order.run) == "second" and order.plan.second is None:
        notes.append("The adapter that training started from can no longer be loaded, so no rewards were measured.")
    return tuple(notes)


def _changes(data: PreparedDataset, before: str | None) -> tuple[str, ...]:
    """Warn if the data has changed: the split then differs, and rows may have been trained on."""
    if before in (None, data.report.fingerprint):
        return ()
    return (
        "The data has changed since this run was trained: some of the rows measured here may have been trained on, so "
        "the tuned model may look better than it is.",
    )


def _row_losses(evaluation: Evaluation, rows: Sequence[TokenizedRow], subject: str) -> dict[Branch, list[float]]:
    """Return the summed loss of each row by branch; batches are the outer loop, since switching adapters is cheap."""
    by_branch = {branch: [0.0] * len(rows) for branch in evaluation.weights.branch_names}
    # Batches gain nothing on a CPU.
    together = evaluation.keeps_rows_apart and evaluation.weights.spec.device.kind != "cpu"
    count = 0
    for batch in batches_of(rows, _TOKENS_AT_ONCE if together else 0):
        batch_rows = [rows[number] for number in batch]
        for branch, losses in by_branch.items():
            evaluation.end_if_stopped()
            for number, loss in zip(batch, losses_of(evaluation.weights.branch(branch), batch_rows), strict=True):
                losses[number] = loss
        count += len(batch)
        evaluation.report(f"Measuring {subject} {count:,} of {len(rows):,}.", count / len(rows))
    return by_branch


def batches_of(rows: Sequence[TokenizedRow], tokens: int) -> list[list[int]]:
    """Group rows of similar length into batches of at most so many tokens with padding."""
    order = sorted(range(len(rows)), key=lambda number: -rows[number].length) if tokens else range(len(rows))
    batches: list[list[int]] = []
    for number in order:
        if batches and (len(batches[-1]) + 1) * rows[batches[-1][0]].length <= tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def losses_of(weights: BranchWeights, rows: Sequence[TokenizedRow]) -> list[float]:
    """Return the summed losses of rows, as one batch if memory suffices and the first row's loss stays the same."""
    alone = weights.summed_loss(rows[0].input_ids, rows[0].labels)
    if len(rows) == 1:
        return [alone]
    try:
        together = weights.summed_losses(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        together = []
    if together and losses_match(together[0], alone):
        return together
    return [alone, *(weights.summed_loss(row.input_ids, row.labels) for row in rows[1:])]


def _predicted_tokens(row: TokenizedRow) -> int:
    """Return the trained tokens except the first of a sequence, which has no context and no loss."""
    return sum(label >= 0 for label in row.labels[1:])


def _mean_losses(
    row_losses: Mapping[Branch, Sequence[float]], rows: Sequence[TokenizedRow]
) -> dict[Branch, BranchLoss]:
    tokens = sum(map(_predicted_tokens, rows))
    return {branch: BranchLoss.from_loss(sum(losses) / tokens, tokens) for branch, losses in row_losses.items()}


def _losses_by_row(row_losses: Mapping[Branch, Sequence[float]], rows: Sequence[TokenizedRow]) -> list[RowLoss]:
    """Return the mean losses of base and tuned for each row, in the order of `rows`."""
    losses = zip(rows, row_losses["base"], row_losses["tuned"], strict=True)
    tokens = map(_predicted_tokens, rows)
    return [
        RowLoss(row=row.row, base=base / count, tuned=tuned / count)
        for (row, base, tuned), count in zip(losses, tokens, strict=True)
        if count
    ]


def _measure_preference(
    evaluation: Evaluation, rows: Sequence[TokenizedRow], chosen: Mapping[Branch, Sequence[float]]
) -> PreferenceResult | None:
    """Measure the rejected answers too; `chosen` has the losses of the chosen ones. None if the rows are not pairs."""
    rejected_rows = [row.rejected for row in rows if row.rejected is not None]
    if not rejected_rows:
        return None
    rejected = _row_losses(evaluation, rejected_rows, "rejected answers, pair")
    likelihoods = {
        branch: PairLikelihoods([-loss for loss in chosen[branch]], [-loss for loss in losses])
        for branch, losses in rejected.items()
    }
    run = evaluation.order.run
    reference = _start_of(run) if objective_of(run).has_reference else None
    tokens = list(zip(map(_predicted_tokens, rows), map(_predicted_tokens, rejected_rows), strict=True))
    return measure_preference(likelihoods, tokens, reference, run.training.beta)


def _measure_ratings(
    run: RunConfig, rows: Sequence[TokenizedRow], losses: Mapping[Branch, Sequence[float]]
) -> RatingResult | None:
    """Compare the rewards of completions with their labels. None if the rows have no labels."""
    labels = [row.desirable for row in rows if row.desirable is not None]
    if len(labels) < len(rows):
        return None
    likelihoods = {branch: [-loss for loss in row_losses] for branch, row_losses in losses.items()}
    return measure_ratings(likelihoods, labels, _start_of(run), run.training.beta)


def _start_of(run: RunConfig) -> Branch:
    return "second" if run.adapter.warm_start is not None else "base"


if __name__ == "__main__":
    serve({"evaluate": EvaluationWorker(LoratoryHome(Path(sys.argv[1]))).evaluate})
