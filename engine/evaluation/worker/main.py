"""The process that evaluates: `python -P -m loratory.engine.evaluation.worker.main HOME`, JSON lines on stdio."""

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import torch

from loratory.engine.chat.contract import Branch, JobProgress
from loratory.engine.chat.target import LoadPlan
from loratory.engine.chat.worker.answer import DecodingTokenizer, end_token_ids, image_inputs_of, load_chat_tokenizer
from loratory.engine.chat.worker.weights import ModelSpec, Weights, choose_dtype, memory_errors
from loratory.engine.config.objectives import GRPO, SUPERVISED, Objective, objective_of
from loratory.engine.config.results import HELD_OUT_PROMPTS, TestSet
from loratory.engine.config.run import RunConfig
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.hub import reads_from_hub
from loratory.engine.data.passes.prepare import PreparedDataset, TokenizedRows, prepare_dataset, spread_evenly
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.errors import DatasetError
from loratory.engine.evaluation.general_text import general_rows
from loratory.engine.evaluation.job import (
    MOST_ROW_LOSSES,
    BranchLoss,
    EvaluationOrder,
    EvaluationResult,
    RowLoss,
    rise_of,
)
from loratory.engine.evaluation.preference import (
    PairLikelihoods,
    PreferenceResult,
    RatingResult,
    measure_preference,
    measure_ratings,
)
from loratory.engine.evaluation.samples import PromptSamples, TestResult, bootstrap
from loratory.engine.evaluation.server_check import ServerCheck, ServerCheckOrder
from loratory.engine.evaluation.try_reward import TryRewardOrder
from loratory.engine.evaluation.worker.answers import Evaluation, answer_rows
from loratory.engine.evaluation.worker.harness import run_tasks
from loratory.engine.evaluation.worker.losses import LossFile
from loratory.engine.evaluation.worker.samples import answer_test, try_rewards, write_replay
from loratory.engine.evaluation.worker.scores import mean_scores
from loratory.engine.evaluation.worker.server_check import CheckedServer, query_server, read_answers
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import CancelledRequestError, JsonObject, Request, serve
from loratory.engine.processes.spawn import Access, give_up_access
from loratory.engine.runs.history.verdict import FORGOT

_LONGEST_PROMPT = 65_536  # tokens, of a test set; what a model cannot read is refused as it is read


_Test = tuple[TestSet, TokenizedRows]


class EvaluationWorker:
    """Runs the orders of `loratory.engine.evaluation.job`."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home

    def evaluate(self, params: JsonObject, request: Request) -> JsonObject:
        """Compute losses on the held-out rows, then answer some of them with every branch."""
        start = time.perf_counter()
        order = EvaluationOrder.model_validate(params)
        model = self._open(order, request, reads_hub=bool(order.lm_eval))
        spec, tokenizer = model.spec, model.tokenizer
        model.announce("Reading the held-out rows.")
        objective, is_whole = objective_of(order.run), order.settings.source is not None
        data = model.read_data(order.run, objective if objective is not SUPERVISED and not is_whole else None)
        measured = data.train | data.held_out if is_whole else data.held_out
        tests = self._read_tests(order.run, model)
        if not measured and not tests and not order.lm_eval:
            fix = "Train with dataset.eval_fraction above 0, or name a test set."
            raise DatasetError("This run has no held-out rows, so there is nothing to measure on.", fix)
        read_weights = cache(model.read_weights)
        most = order.settings.max_rows
        lm_eval = run_tasks(order.lm_eval, read_weights(), tokenizer, most) if order.lm_eval else {}
        give_up_access(Access.HUB)
        rows = measured.select(spread_evenly(range(len(measured)), most))
        prompts = rows if objective.samples_answers and not is_whole else rows[:0]
        if prompts:  # they have no loss, and are one more test
            tests, rows = [(_held_out_test(order.run.training), prompts), *tests], rows[:0]
        evaluation = Evaluation(order, request, read_weights, tokenizer)
        file = LossFile(evaluation, spec, self._home)
        with memory_errors(spec), torch.inference_mode():
            changes = (
                *order.plan.base_changes(spec.folder, spec.name, self._home),
                *_changes(data, order.data_fingerprint),
            )
            row_losses = file.sums(rows, "the loss, row")
            desirable = [number for number, row in enumerate(rows) if row.desirable is not False]
            numbers = desirable or range(len(rows))
            losses = _mean_losses(row_losses, rows, numbers)
            by_row = _losses_by_row(row_losses, rows)
            preference = _measure_preference(file, order.run, rows, row_losses)
            ratings = _measure_ratings(order.run, rows, row_losses)
            texts = general_rows(tokenizer) if order.settings.general_text else []
            general = file.sums(texts, "forgetting, text")
            answered_rows = answer_rows(evaluation, rows.select(desirable)) if order.settings.answered_rows else []
            test_results = tuple(model.answer_test(*test, evaluation.weights()) for test in tests)
            general_losses = _mean_losses(general, texts, range(len(texts)))
            forgot = order.writes_replay and (rise_of(general_losses) or 0.0) >= FORGOT
            replay = write_replay(evaluation.weights(), tokenizer, evaluation.report) if forgot else []
        about_rows = _about_rows(order, has_desirable=bool(desirable)) if rows else ()
        result = EvaluationResult(
            losses=losses,
            rows=len({rows[number].row for number in numbers}) or len(prompts),
            scores={
                branch: mean_scores([row.answers[branch].scores for row in answered_rows])
                for branch in losses
                if answered_rows
            },
            answered_rows=tuple(sorted(answered_rows, key=lambda row: row.answers["tuned"].scores.chrf)),
            row_losses=tuple(spread_evenly(by_row, MOST_ROW_LOSSES)),
            lists=file.lists(rows, by_row) if by_row else {},
            source=order.run.dataset.source if is_whole else "",
            seconds=time.perf_counter() - start,
            notes=(*order.plan.notes, *about_rows, *changes),
            general_losses=general_losses,
            forgetting_interval=_forgetting_interval(general) if texts else None,
            preference=preference,
            ratings=ratings,
            start=order.plan.second.name if order.plan.second is not None else "",
            tests=test_results,
            lm_eval=lm_eval,
        )
        return {"result": result.model_dump(mode="json"), "replay": replay}

    def try_reward(self, params: JsonObject, request: Request) -> JsonObject:
        """Let the model that training starts from answer training prompts, and score the answers."""
        order = TryRewardOrder.model_validate(params)
        model, training = self._open(order, request), order.run.training
        model.announce("Reading the prompts.")
        data = model.read_data(order.run, objective_of(order.run))
        give_up_access(Access.HUB)
        rows = data.train.select(spread_evenly(range(len(data.train)), order.settings.prompts))
        weights = model.read_weights()
        with memory_errors(model.spec), torch.inference_mode():
            result = try_rewards(
                training, weights, model.tokenizer, rows, model.report_answers(len(rows)), model.end_if_stopped
            )
        facts = {"train_prompts": len(data.train), "held_out": tuple(row.row for row in data.held_out)}
        return result.model_copy(update={"notes": order.plan.notes, **facts}).model_dump(mode="json")

    def query_server(self, params: JsonObject, request: Request) -> JsonObject:
        """Ask a server for answers to the prompts of a run."""
        order = ServerCheckOrder.model_validate(params)
        server, model = CheckedServer(order.settings, allows_private=order.allows_private), self._open(order, request)
        model.announce("Reading the held-out prompts.")
        data = model.read_data(order.run, GRPO)
        rows = data.held_out or data.train
        rows = rows.select(spread_evenly(range(len(rows)), order.settings.prompts))
        base_tokenizer = load_chat_tokenizer([], model.spec.folder, model.spec.name, order.plan.vision)
        replies = query_server(server, (model.tokenizer, base_tokenizer), rows, model.report)
        notes = () if data.held_out else ("The run held no rows out, so its prompts are those of the training.",)
        return replies.model_copy(update={"notes": notes}).model_dump(mode="json")

    def read_answers(self, params: JsonObject, request: Request) -> JsonObject:
        """Let a run's model read what a server answered."""
        start, order = time.perf_counter(), ServerCheckOrder.model_validate(params)
        model, replies = self._open(order, request), order.replies
        assert replies is not None
        give_up_access(Access.HUB)
        weights = model.read_weights()
        ends = end_token_ids(model.tokenizer, weights.branch("tuned").holder.model.generation_config)
        with memory_errors(model.spec), torch.inference_mode():
            evidence = read_answers(replies, weights, ends, model.report)
        notes, seconds = (*order.plan.notes, *replies.notes), time.perf_counter() - start
        return ServerCheck(evidence=evidence, seconds=seconds, notes=notes).model_dump(mode="json")

    def _read_tests(self, run: RunConfig, model: "_OpenModel") -> list[_Test]:
        """Return the test sets of a run with their prompts."""
        tests = []
        for test, dataset in zip(run.evaluation.tests, run.test_datasets, strict=True):
            model.announce(f"Reading {test.title}.")
            rows = prepare_dataset(
                dataset, seed=0, max_length=_LONGEST_PROMPT, tokenizer=model.tokenizer, home=model.home, objective=GRPO
            ).train
            tests.append((test, rows.select(spread_evenly(range(len(rows)), test.max_rows))))
        return tests

    def _open(
        self, order: EvaluationOrder | TryRewardOrder | ServerCheckOrder, request: Request, *, reads_hub: bool = False
    ) -> "_OpenModel":
        """Find the model of an order and load its tokenizer; gives up the Hub where the data needs none of it."""
        home = order.plan.home(self._home)
        source = resolve_model(order.plan.model, home)
        if not reads_hub and not reads_from_hub(order.run.dataset, *order.run.test_datasets):
            give_up_access(Access.HUB)
        folder = Path(source.location)
        folders = [weights.folder for weights in order.plan.trained_weights.values()]
        tokenizer = load_chat_tokenizer(folders, folder, source.name, order.plan.vision)
        dtype = choose_dtype(order.plan.model, order.device)
        spec = ModelSpec(folder, source.name, order.device, dtype, home.media)
        return _OpenModel(order.plan, home, spec, tokenizer, request)


@dataclass(frozen=True)
class _OpenModel:
    """A model that is found, and its tokenizer."""

    plan: LoadPlan
    home: LoratoryHome
    spec: ModelSpec
    tokenizer: DecodingTokenizer
    request: Request

    def announce(self, message: str) -> None:
        """Report what begins."""
        self.request.progress(JobProgress(phase="starting", message=message).model_dump(mode="json"))

    def read_data(self, run: RunConfig, objective: Objective | None) -> PreparedDataset:
        """Read the rows of a run, tokenized as in training."""
        return prepare_dataset(
            run.dataset,
            seed=run.training.seed,
            max_length=run.training.max_length,
            tokenizer=self.tokenizer,
            home=self.home,
            objective=objective,
        )

    def answer_test(self, test: TestSet, rows: TokenizedRows, weights: Weights) -> TestResult:
        """Let every branch answer the prompts of a test set."""
        report = self.report_answers(len(rows) * len(weights.branch_names), f"{test.title}: ")
        return answer_test(test, weights, self.tokenizer, rows, report, self.end_if_stopped)

    def report_answers(self, total: int, title: str = "") -> Callable[[Sequence[PromptSamples]], None]:
        """Return a function that reports prompts as they are answered, of `total` in all."""
        count = itertools.accumulate(itertools.repeat(1))

        def report(prompts: Sequence[PromptSamples]) -> None:
            for prompt in prompts:
                done = next(count)
                if not title:
                    self.request.progress({"prompt": prompt.model_dump(mode="json")})
            message = f"{title}{done:,} of {total:,} prompts are answered."
            progress = JobProgress(phase="measuring", message=message, fraction=done / total)
            self.request.progress(progress.model_dump(mode="json"))

        return report

    def report(self, message: str, fraction: float) -> None:
        """Report a share of the work, unless the request was cancelled."""
        self.end_if_stopped()
        progress = JobProgress(phase="measuring", message=message, fraction=fraction)
        self.request.progress(progress.model_dump(mode="json"))

    def end_if_stopped(self) -> None:
        """Raise CancelledRequestError once the caller has cancelled the request."""
        if self.request.is_cancelled():
            raise CancelledRequestError

    def read_weights(self) -> Weights:
        """Read the weights of the plan, outside of inference mode."""
        with torch.inference_mode(mode=False):
            weights = Weights(self.plan, self.spec, self.announce)
        weights.show_images(image_inputs_of(self.tokenizer, self.spec.media))
        return weights


def _held_out_test(training: TrainingConfig) -> TestSet:
    """Return the rewards of a run as a test of its held-out prompts, with the answers of its length."""
    most = training.max_completion_length
    return TestSet(source=HELD_OUT_PROMPTS, scorers=training.rewards, max_new_tokens=most)


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


def _predicted_tokens(row: TokenizedRow) -> int:
    """Return the trained tokens except the first of a sequence, which has no context and no loss."""
    return sum(label >= 0 for label in row.labels[1:])


def _mean_losses(
    row_losses: Mapping[Branch, Sequence[float]], rows: Sequence[TokenizedRow], numbers: Sequence[int]
) -> dict[Branch, BranchLoss]:
    """Return the mean losses over some rows by branch; nothing where no token has a loss."""
    tokens = sum(_predicted_tokens(rows[number]) for number in numbers)
    sums = {branch: sum(losses[number] for number in numbers) for branch, losses in row_losses.items()}
    return {branch: BranchLoss.from_loss(total / tokens, tokens) for branch, total in sums.items() if tokens}


def _forgetting_interval(row_losses: Mapping[Branch, Sequence[float]]) -> tuple[float, float]:
    """Return the 95% interval of the relative increase of the loss from base to tuned, resampling texts."""
    mean = fmean(row_losses["base"])
    return bootstrap(
        [(tuned - base) / mean for base, tuned in zip(row_losses["base"], row_losses["tuned"], strict=True)]
    )


def _losses_by_row(row_losses: Mapping[Branch, Sequence[float]], rows: Sequence[TokenizedRow]) -> list[RowLoss]:
    """Return the mean losses of base and tuned for each row, over all of its sequences."""
    sums: dict[int, list[float]] = {}
    for row, base, tuned in zip(rows, row_losses["base"], row_losses["tuned"], strict=True):
        values = (base, tuned, _predicted_tokens(row))
        sums[row.row] = [total + value for total, value in zip(sums.get(row.row, (0, 0, 0)), values, strict=True)]
    return [RowLoss(row=row, base=base / n, tuned=tuned / n) for row, (base, tuned, n) in sums.items() if n]


def _measure_preference(
    file: LossFile, run: RunConfig, rows: Sequence[TokenizedRow], chosen: Mapping[Branch, Sequence[float]]
) -> PreferenceResult | None:
    """Measure the rejected answers too; `chosen` has the losses of the chosen ones. None if the rows are not pairs."""
    rejected_rows = [row.rejected for row in rows if row.rejected is not None]
    if not rejected_rows:
        return None
    rejected = file.sums(rejected_rows, "rejected answers, pair")
    likelihoods = {
        branch: PairLikelihoods([-loss for loss in chosen[branch]], [-loss for loss in losses])
        for branch, losses in rejected.items()
    }
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
    worker = EvaluationWorker(LoratoryHome(Path(sys.argv[1])))
    serve(
        {
            "evaluate": worker.evaluate,
            "try_reward": worker.try_reward,
            "query_server": worker.query_server,
            "read_answers": worker.read_answers,
        }
    )
