"""Steps from rollouts: prompts are answered by the model as it is, the answers are scored, and trained on.

The rows that are planned are prompts. What is sampled depends on the seed and on the number of the rollout alone, so a
resumed run repeats it. Answers that serve several steps are in the checkpoints between these.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import DynamicCache

from loratory.engine.config.rules import answers_at_once
from loratory.engine.data.render.template import stop_token_ids
from loratory.engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from loratory.engine.data.step_plan import Step, divide
from loratory.engine.generation.worker.batch import AnswerBatch, WrittenAnswer
from loratory.engine.generation.worker.sampling import LIKELIEST, Sampling
from loratory.engine.generation.worker.vllm_copy import VllmCopy
from loratory.engine.runs.history.events import EvalData, RolloutData, RolloutSample
from loratory.engine.runs.history.reward_health import reward_names
from loratory.engine.scoring.base import ScoredAnswer, Verdict
from loratory.engine.scoring.session import ScoringSession, total
from loratory.engine.training import faults
from loratory.engine.training.batching.steps import StepBatch, StepBatches
from loratory.engine.training.checkpoints import state_files
from loratory.engine.training.loops.supervised import SupervisedLoop
from loratory.engine.training.objectives.base import sequence_log_probabilities
from loratory.engine.training.objectives.grpo import SampledAnswer, group_advantages, nan_std
from loratory.engine.training.ops.answer_linear import quick_linears
from loratory.engine.training.ops.loss import causal_lm_of

ROLLOUT_FILE = "rollout.json"
_LEFT_OUT = -1  # in place of the row of an answer that was cut off
_MOST_EVENTS = 200  # of a run, about
_MOST_SAMPLES = 8  # in an event
_LONGEST_TEXT = 2000  # characters of a prompt or an answer in an event


class StopInRolloutError(BaseException):
    """A stop was requested while answers were written or scored; the step before is the last."""


class PromptNumbers(StepBatches):
    """Steps of prompts, which have no passes before they are answered."""

    def __getitems__(self, step: Step) -> StepBatch:
        return StepBatch((), step)


@dataclass(frozen=True)
class Rollout:
    """Answers to the prompts of a step, those to one prompt after the other."""

    number: int
    answers: tuple[SampledAnswer, ...]


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers with their verdicts, and their rewards: NaN where an answer has none."""

    answers: Sequence[WrittenAnswer]
    texts: Sequence[str]
    verdicts: Sequence[tuple[Verdict, ...]]
    rewards: torch.Tensor  # (answers,), float32


class RolloutLoop(SupervisedLoop):
    """Trains on answers that the model itself gives to the prompts of each step; as TRL's `GRPOTrainer`."""

    _rollout: Rollout | None = None
    _scoring_session: ScoringSession | None = None
    _vllm: VllmCopy | None = None
    _step_began: int = -1  # the step that this process began with

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rollout_metrics: list[dict[str, float]] = []
        self._training = self._setup.settings.training
        eos = causal_lm_of(self.model).generation_config.eos_token_id
        self._end_ids = frozenset(
            {*stop_token_ids(self.processing_class), *(eos if isinstance(eos, list) else [eos])} - {None}
        )

    @property
    def _batches(self) -> StepBatches:
        return StepBatches(self._rollout.answers if self._rollout is not None else (), self._setup)

    @property
    def _planned_rows(self) -> StepBatches:
        return PromptNumbers(self._rows.train, self._setup)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a stop during a rollout ends the run with the step before it."""
        try:
            return super().train(*args, **kwargs)
        except StopInRolloutError:
            if int(self.state.global_step) == self._step_began:
                raise
            # As if the request had come at the end of that step.
            self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
            self._save_checkpoint(self.model, None)
            self._count_progress()
        finally:
            self._close_scoring()

    def training_step(self, model: Any, inputs: StepBatch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Answer and score the prompts of a step, unless answers serve several steps, and run its passes."""
        step = int(self.state.global_step)
        if self._step_began < 0:
            self._step_began = step
        number = step // self._setup.settings.repeats
        if self._rollout is None or self._rollout.number != number:
            rows = [self._rows.train[row] for plan in inputs.planned.passes for row in plan.rows]
            self._rollout = self._roll_out(number, rows)
        return super().training_step(model, self._passes_of(self._rollout.answers), num_items_in_batch)

    def _passes_of(self, answers: Sequence[SampledAnswer]) -> StepBatch:
        lengths = [answer.length for answer in answers]
        if self._setup.settings.shares_prompts:
            for index, (before, answer) in enumerate(itertools.pairwise(answers), start=1):
                if before.row == answer.row:  # its prompt passes through the model with the answer before it
                    lengths[index] = max(1, answer.trained_tokens)
        passes = tuple(divide(range(len(answers)), lengths, self._setup.settings))
        return StepBatch(tuple(StepBatches(answers, self._setup).tensors(passes)), Step(passes))

    def _roll_out(self, number: int, rows: Sequence[TokenizedRow]) -> Rollout:
        """Sample answers to prompts, have them scored, and compute their advantages."""
        training, began = self._training, time.perf_counter()
        generator = torch.Generator(self.args.device).manual_seed(training.seed * 1_000_003 + number)
        sampling = Sampling(training.temperature, training.top_p, generator)
        drafts = self._answer(rows, training.num_generations, sampling, self._check_requests)
        middle = time.perf_counter()
        outcome = self._score(
            [row for row in rows for _ in range(training.num_generations)], drafts, self._check_requests
        )
        finished = time.perf_counter()
        advantages, is_tied = group_advantages(outcome.rewards.view(len(rows), -1), training.scale_rewards)
        answers = tuple(
            self._sampled(rows[index // training.num_generations], answer, advantage)
            for index, (answer, advantage) in enumerate(zip(drafts, advantages.flatten().tolist(), strict=True))
        )
        answers = tuple(sorted(answers, key=lambda answer: answer.row == _LEFT_OUT))  # not between those to one prompt
        if self._setup.settings.repeats > 1:
            answers = self._with_old(answers)
        share = is_tied.float().mean().item()
        self._rollout_metrics.append(self._metrics_of(outcome) | {"frac_reward_zero_std": share})
        self._report(rows, outcome, advantages.flatten().tolist(), (middle - began, finished - middle))
        return Rollout(number, answers)

    def _answer(
        self, rows: Sequence[TokenizedRow], copies: int, sampling: Sampling, between: Callable[[], None]
    ) -> list[WrittenAnswer]:
        """Return `copies` answers to each prompt, in their order; the longest prompts are answered first."""
        if self._training.uses_vllm:
            return self._answer_in_vllm(rows, copies, sampling)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index].input_ids))
        most, answers = self._training.max_completion_length, [WrittenAnswer()] * (len(rows) * copies)
        with self._generating() as causal_lm:
            while order:
                positions = len(rows[order[0]].input_ids) + most
                size = max(1, self._most_rows(positions) // copies)
                part, order = order[:size], order[size:]
                batch = AnswerBatch(
                    partial(next_logits, causal_lm),
                    DynamicCache(config=causal_lm.config.get_text_config(decoder=True)),
                    self.args.device,
                    [rows[index].input_ids for index in part],
                    [most] * len(part),
                    self._end_ids,
                    sampling=sampling,
                    copies=copies,
                    between=between,
                )
                while not batch.is_done:
                    faults.reached("rollout:token")
                    batch.advance()
                for place, index in enumerate(part):
                    answers[index * copies : (index + 1) * copies] = batch.answers[
                        place * copies : (place + 1) * copies
                    ]
        return answers

    def _answer_in_vllm(self, rows: Sequence[TokenizedRow], copies: int, sampling: Sampling) -> list[WrittenAnswer]:
        training, step = self._training, int(self.state.global_step)
        positions = training.max_length + training.max_completion_length
        self._vllm = self._vllm or VllmCopy(self.model, positions, training.vllm_gpu_memory_utilization)
        with tempfile.TemporaryDirectory(prefix="loratory-adapter-") as folder:
            state_files.save_adapter(self.model, self.processing_class, Path(folder))
            return self._vllm.answer(
                [row.input_ids for row in rows], Path(folder), step, copies, training.max_completion_length, self._end_ids,
                sampling, training.seed * 1_000_003 + step,
            )  # fmt: skip

    @contextlib.contextmanager
    def _generating(self) -> Iterator[Any]:
        with self._passes.answering(self.model) as model, self._setup.method.step(model):
            causal_lm = causal_lm_of(model)
            with quick_linears(model, causal_lm.get_output_embeddings()):
                yield causal_lm

    def _most_rows(self, positions: int) -> int:
        config = causal_lm_of(self.model).config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return answers_at_once(2 * config.num_hidden_layers * heads * size, positions, self.args.device.type)

    def _check_requests(self) -> None:
        self.hooks.between_passes()
        if self.hooks.stop_wanted():
            raise StopInRolloutError

    def _score(
        self, rows: Sequence[TokenizedRow], drafts: Sequence[WrittenAnswer], between: Callable[[], None]
    ) -> ScoredAnswers:
        faults.reached("rollout:scoring")
        if self._scoring_session is None:
            self._scoring_session = ScoringSession(self._training.rewards).__enter__()
        texts = self.processing_class.batch_decode([answer.tokens for answer in drafts], skip_special_tokens=True)
        pairs = zip(rows, texts, strict=True)
        answers = [ScoredAnswer(row.prompt.text, text, row.prompt.columns) for row, text in pairs if row.prompt]
        verdicts = self._scoring_session.score(answers, between)
        totals = [total(verdict, self._training.rewards) for verdict in verdicts]
        rewards = torch.tensor([float("nan") if reward is None else reward for reward in totals])
        return ScoredAnswers(drafts, texts, verdicts, rewards)

    def _close_scoring(self) -> None:
        if self._scoring_session is not None:
            self._scoring_session.__exit__(None, None, None)
        self._scoring_session = None

    def _sampled(self, row: TokenizedRow, answer: WrittenAnswer, advantage: float) -> SampledAnswer:
        """Return an answer behind its prompt; of one that is left out the first token, of which nothing is trained."""
        if answer.end is None and self._training.mask_truncated_completions:
            return SampledAnswer(_LEFT_OUT, 0, row.input_ids[:1], [IGNORED_LABEL])
        tokens = [*answer.tokens, *([] if answer.end is None else [answer.end])]
        labels = [IGNORED_LABEL] * len(row.input_ids) + tokens
        ids = [*row.input_ids, *tokens]
        return SampledAnswer(row.row, 0, ids, labels, advantage=advantage, sampled=tuple(answer.log_probabilities))

    def _with_old(self, answers: tuple[SampledAnswer, ...]) -> tuple[SampledAnswer, ...]:
        """Add the log-probabilities before the first of the steps that the answers serve, by the passes of training."""
        batch, changed = self._passes_of(answers), list(answers)
        self.model.train()
        with torch.no_grad(), self._passes.casting(), self._setup.method.step(self.model):
            for plan, tensors in zip(batch.planned.passes, batch.passes, strict=True):
                self._check_requests()
                values = sequence_log_probabilities(self.model, tensors.to(self.args.device))[1].cpu()
                parts = values.split(list(tensors.sequence_tokens))
                for row, part in zip(plan.rows, parts, strict=True):
                    changed[row] = replace(answers[row], old=tuple(part.tolist()))
        return tuple(changed)

    def _metrics_of(self, outcome: ScoredAnswers) -> dict[str, float]:
        """Return what TRL logs about answers and rewards, by its names, and how many verdicts scorers failed to give."""
        lengths = [len(answer.tokens) + (answer.end is not None) for answer in outcome.answers]
        entropies = [value for answer in outcome.answers for value in answer.entropies]
        scores = torch.tensor([[float("nan") if v.score is None else v.score for v in row] for row in outcome.verdicts])
        metrics = {
            "reward": torch.nanmean(outcome.rewards).item(),
            "reward_std": nan_std(outcome.rewards).item(),
            "completions/mean_length": fmean(lengths),
            "completions/clipped_ratio": fmean(answer.end is None for answer in outcome.answers),
            "scorer_errors": float(torch.isnan(scores).sum()),
        }
        if entropies:
            metrics["entropy"] = fmean(entropies)
        for name, column in zip(reward_names(self._training), scores.t(), strict=True):
            metrics[f"rewards/{name}/mean"] = torch.nanmean(column).item()
            metrics[f"rewards/{name}/std"] = nan_std(column).item()
        return {name: value for name, value in metrics.items() if value == value}

    def _report(
        self,
        rows: Sequence[TokenizedRow],
        outcome: ScoredAnswers,
        advantages: Sequence[float],
        seconds: tuple[float, float],
    ) -> None:
        """Report a few of the answers, at some steps of the run."""
        step = int(self.state.global_step)
        if step % max(1, self.total_steps // _MOST_EVENTS):
            return
        copies = len(outcome.answers) // len(rows)
        samples = tuple(
            RolloutSample(
                prompt=(prompt.text if (prompt := rows[index // copies].prompt) is not None else "")[-_LONGEST_TEXT:],
                answer=outcome.texts[index][:_LONGEST_TEXT],
                scores=tuple(verdict.score for verdict in outcome.verdicts[index]),
                reasons=tuple(verdict.reason[:200] for verdict in outcome.verdicts[index]),
                advantage=advantages[index],
            )
            for index in range(min(_MOST_SAMPLES, len(outcome.answers)))
        )
        tokens = sum(len(answer.tokens) for answer in outcome.answers)
        self.hooks.on_rollout(
            RolloutData(
                step=step + 1,
                samples=samples,
                answers=len(outcome.answers),
                tokens=tokens,
                generation_seconds=seconds[0],
                scoring_seconds=seconds[1],
            )
        )

    def _step_metrics(self) -> dict[str, float]:
        """Return the metrics of the passes and of the rollouts since the last logged step."""
        names = dict.fromkeys(name for metrics in self._rollout_metrics for name in metrics)
        means = {name: fmean(m[name] for m in self._rollout_metrics if name in m) for name in names}
        self._rollout_metrics = []
        return super()._step_metrics() | means

    def measure_held_out(self) -> EvalData:
        """Return the mean reward of the likeliest answers to the held-out prompts; the loss is its negative."""
        start, rows = time.perf_counter(), self._rows.held_out
        drafts = self._answer(rows, 1, LIKELIEST, self.hooks.between_passes)
        outcome = self._score(rows, drafts, self.hooks.between_passes)
        with self._passes.answering(self.model) as model:
            self.hooks.answer(model, int(self.state.global_step))
        metrics = self._metrics_of(outcome)
        seconds = time.perf_counter() - start
        self._interval.paused_seconds += seconds
        return EvalData(
            step=int(self.state.global_step),
            eval_loss=0.0 - metrics.get("reward", 0.0),
            eval_tokens=sum(len(answer.tokens) for answer in drafts),
            rows=len(rows),
            seconds=seconds,
            metrics=metrics,
        )

    def write_state(self, folder: Path, gathered_state: Any) -> None:
        """Write the training state, with the answers where more steps are to be trained on them."""
        super().write_state(folder, gathered_state)
        if self._rollout is not None and int(self.state.global_step) % self._setup.settings.repeats:
            answers = [asdict(answer) for answer in self._rollout.answers]
            state_files.save_plain({"number": self._rollout.number, "answers": answers}, folder / ROLLOUT_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / ROLLOUT_FILE
        if path.is_file():
            state = state_files.load_plain(path)
            self._rollout = Rollout(state["number"], tuple(SampledAnswer(**answer) for answer in state["answers"]))


def next_logits(
    causal_lm: Any, ids: torch.Tensor, cache: DynamicCache, mask: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    # A tensor for the last position of several: with a number, torch copies the frozen output layer before it multiplies.
    last = torch.tensor([ids.shape[1] - 1], device=ids.device) if ids.shape[1] > 1 else 1
    arguments = {"attention_mask": mask, "position_ids": positions, "cache": cache, "use_cache": True}
    return causal_lm(input_ids=ids, logits_to_keep=last, **arguments).logits[:, -1].float()
