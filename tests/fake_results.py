"""Measuring and taking away without a model: prepared results at a human pace, written where the real ones would be."""

import threading
from collections.abc import Callable
from pathlib import Path

from loratory.engine.chat.contract import JobProgress
from loratory.engine.config.results import TestSet
from loratory.engine.errors import PushError
from loratory.engine.evaluation.job import (
    AnsweredRow,
    AnswerScores,
    BranchAnswer,
    BranchLoss,
    EvaluationRequest,
    EvaluationResult,
    MeanScores,
    RowLoss,
    RowTokens,
    evaluation_file,
)
from loratory.engine.evaluation.preference import PairLikelihoods, measure_preference, measure_ratings
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples, TestResult, measure_test
from loratory.engine.export.contract import (
    ExportedFile,
    ExportRequest,
    ExportResult,
    PushRequest,
    PushResult,
    Verification,
)
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.scoring.base import Verdict
from loratory.ui.backend.results import ResultWork
from tests.fake_inspector import QUESTIONS

STEPS = 8


def an_evaluation(rows: int = 23) -> EvaluationResult:
    """Return base against tuned; the tuned answers are better, and the first row is the worst."""
    answers = []
    for number in range(rows):
        question, reference = QUESTIONS[number % len(QUESTIONS)]
        text = reference if number % 3 == 2 else reference[: 20 + 3 * number]
        worth = min(1.0, 0.21 + number / rows)
        answers.append(
            AnsweredRow(
                row=3 + 10 * number,
                prompt=f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
                reference=reference,
                answers={
                    "base": BranchAnswer(
                        text="Alpha is the <i>first</i> letter of the Greek alphabet.",
                        tokens=14,
                        scores=AnswerScores(exact=False, rouge_l=0.11, chrf=0.14),
                    ),
                    "tuned": BranchAnswer(
                        text=text,
                        tokens=28,
                        scores=AnswerScores(exact=text == reference, rouge_l=worth, chrf=worth),
                    ),
                },
            )
        )
    return EvaluationResult(
        losses={"base": BranchLoss.from_loss(2.7143, 1508), "tuned": BranchLoss.from_loss(1.0821, 1508)},
        rows=35,
        scores={
            "base": MeanScores(exact=0.0, rouge_l=0.112, chrf=0.141, rows=rows),
            "tuned": MeanScores(exact=0.3043, rouge_l=0.612, chrf=0.597, rows=rows),
        },
        answered_rows=tuple(answers),
        seconds=83.4,
        general_losses={"base": BranchLoss.from_loss(3.1, 4120), "tuned": BranchLoss.from_loss(3.193, 4120)},
    )


def losses_by_row(source: str = "") -> EvaluationResult:
    """Return the losses of four rows, of which two became worse, with the tokens of two that stand out."""
    losses = [RowLoss(row=row, base=2.0, tuned=tuned) for row, tuned in ((3, 1.0), (4, 2.5), (9, 2.01), (11, 4.0))]
    pieces, tokens = ("It", " <i>", "", "é"), {"base": (0.05, 2.0, 0.7, 5.25), "tuned": (0.01, 1.0, 0.1, 2.89)}
    likeliest, worst = (RowTokens(**dict(loss), pieces=pieces, tokens=tokens) for loss in (losses[0], losses[3]))  # type: ignore[arg-type]
    lists = {
        "likeliest": (likeliest,),
        "most surprising": (likeliest,),
        "got worse": (worst,),
        "still failing": (worst,),
    }
    result = an_evaluation(0)
    return result.model_copy(update={"row_losses": tuple(losses), "lists": lists, "source": source, "rows": 4})


def a_preference_evaluation() -> EvaluationResult:
    """Return the same for a run on pairs, compared with its start."""
    likelihoods = {
        "base": PairLikelihoods([-40.0] * 30, [-39.0] * 17 + [-42.0] * 13),
        "second": PairLikelihoods([-30.0] * 30, [-29.5] * 14 + [-31.0] * 16),
        "tuned": PairLikelihoods([-31.0] * 30, [-30.0] * 2 + [-44.0] * 28),
    }
    preference = measure_preference(likelihoods, [(20, 24)] * 30, "second", 0.1)  # type: ignore[arg-type]
    result = an_evaluation()
    losses = {**result.losses, "second": BranchLoss.from_loss(1.0532, 1508)}
    return result.model_copy(update={"losses": losses, "preference": preference, "start": "faq <b>"})


def a_test_result(name: str = "sums.jsonl", base: float = 0.25, tuned: float = 0.75, prompts: int = 8) -> TestResult:
    """Return what base and tuned score on a test set: so many of its prompts pass."""
    test = TestSet.model_validate({"source": name, "scorers": [{"scorer": "number"}]})

    def prompts_of(share: float) -> list[PromptSamples]:
        verdicts = [Verdict(float(number < share * prompts)) for number in range(prompts)]
        answers = [AnswerSample.from_verdicts("4", 1, (v,), test.scorers, is_cut=False) for v in verdicts]
        return [PromptSamples(row=n, prompt="2 + 2?", reference="4", answers=(a,)) for n, a in enumerate(answers)]

    return measure_test(test, {"base": prompts_of(base), "tuned": prompts_of(tuned)})


def save_tests(run: Path, *tests: TestResult, checkpoint: str | None = None) -> None:
    """Save an evaluation of a run with these results."""
    result = an_evaluation(0).model_copy(update={"tests": tests})
    write_atomically(evaluation_file(run, checkpoint), result.model_dump_json(), makes_folder=True)


def a_rated_evaluation() -> EvaluationResult:
    """Return the same for a run on labeled completions: 20 desirable and 10 undesirable ones."""
    labels = [True] * 20 + [False] * 10
    tuned = [-30.0] * 18 + [-45.0] * 2 + [-50.0] * 7 + [-39.0] * 3
    return an_evaluation().model_copy(
        update={"ratings": measure_ratings({"base": [-40.0] * 30, "tuned": tuned}, labels, "base", 0.1)}
    )


class _Paced:
    """Goes through its steps and can be stopped between them."""

    def __init__(self, pace_seconds: float) -> None:
        self._pace = pace_seconds
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def _go(self, say: Callable[[int], None]) -> None:
        for step in range(1, STEPS + 1):
            if self._stopped.wait(self._pace):
                raise CancelledRequestError
            say(step)


class FakeEvaluation(_Paced):
    """Keeps a prepared result with the run."""

    def __init__(self, request: EvaluationRequest, pace_seconds: float) -> None:
        super().__init__(pace_seconds)
        self.request = request

    def run(self, on_progress: Callable[[JobProgress], None]) -> EvaluationResult:
        self._go(
            lambda step: on_progress(
                JobProgress(
                    phase="measuring", message=f"Measuring the loss, row {step} of {STEPS}.", fraction=step / STEPS
                )
            )
        )
        settings, choice = self.request.settings, self.request.target.tuned
        is_whole = settings.source is not None
        result = (
            losses_by_row(settings.source or "faq.jsonl")
            if is_whole
            else an_evaluation(min(23, settings.answered_rows))
        )
        assert choice is not None
        file = evaluation_file(choice.folder, choice.checkpoint, all_rows=is_whole)
        file.parent.mkdir(exist_ok=True)
        file.write_text(result.model_dump_json())
        return result


def a_verification(is_good: bool = True) -> Verification:
    """Return a verification of twenty prompts with equal answers."""
    return Verification(
        passed=is_good,
        comparison="the merged model and the run",
        prompts=20,
        equal_answers=20 if is_good else 13,
        largest_logit_difference=0.0312 if is_good else 2.4,
        allowed_logit_difference=0.0870,
        dtype="bfloat16",
        seconds=21.0,
    )


class FakeExport(_Paced):
    """Writes small files with the right names."""

    def __init__(self, request: ExportRequest, pace_seconds: float) -> None:
        super().__init__(pace_seconds)
        self.request = request

    def run(self, on_progress: Callable[[JobProgress], None]) -> ExportResult:
        self._go(
            lambda step: on_progress(
                JobProgress(phase="writing", message=f"Writing tensor {step} of {STEPS}.", fraction=step / STEPS)
            )
        )
        weights = {"adapter": "adapter_model.safetensors", "merged": "model.safetensors"}
        name = weights.get(self.request.settings.kind, "model-bf16.gguf")
        folder = self.request.folder
        folder.mkdir(parents=True)
        for file, size in ((name, 24_000), ("README.md", 900), ("tokenizer.json", 3_500)):
            (folder / file).write_bytes(b" " * size)
        files = tuple(ExportedFile(name=path.name, size_bytes=path.stat().st_size) for path in sorted(folder.iterdir()))
        verification = a_verification() if self.request.settings.verify else None
        return ExportResult(path=folder, files=files, verified=verification)


class FakePush(_Paced):
    """Puts nothing anywhere; a repository named `forbidden` is refused."""

    def __init__(self, request: PushRequest, pace_seconds: float) -> None:
        super().__init__(pace_seconds)
        self.request = request

    def run(self, on_progress: Callable[[JobProgress], None]) -> PushResult:
        self._go(
            lambda step: on_progress(
                JobProgress(phase="uploading", message=f"Uploading part {step} of {STEPS}.", fraction=step / STEPS)
            )
        )
        if "forbidden" in self.request.repository:
            raise PushError("The Hub refused: this token may not write there.", "Use a token that may write.")
        return PushResult(
            url=f"https://huggingface.co/{self.request.repository}",
            commit="0a1b2c3d",
            repository=self.request.repository,
            private=self.request.settings.private,
            files=(ExportedFile(name="adapter_model.safetensors", size_bytes=19_000),),
            verified=a_verification(),
        )


def fake_results(home: LoratoryHome, pace_seconds: float) -> ResultWork:
    """Return the service with these jobs."""
    return ResultWork(
        home,
        evaluate=lambda request: FakeEvaluation(request, pace_seconds),
        export=lambda request: FakeExport(request, pace_seconds),
        push=lambda request: FakePush(request, pace_seconds),
        roots=(),
    )
