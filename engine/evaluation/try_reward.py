"""Try rewards before a run: what the model that training starts from earns, what bad answers earn, and what follows."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, NamedTuple

from loratory.engine.chat.contract import AdapterChoice, ChatTarget, FrozenModel, JobProgress, OnProgress
from loratory.engine.chat.target import LoadPlan, plan_load
from loratory.engine.config.run import RunConfig
from loratory.engine.data.hub import hub_access
from loratory.engine.data.workshop.operations import Mark, text_of_rows
from loratory.engine.errors import ConfigError, DatasetError
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.hardware.devices import choose_device
from loratory.engine.lab.rules import lab_problems, with_allowed_paths
from loratory.engine.paths import AllowedPaths, LoratoryHome, local_owner
from loratory.engine.runs.prediction import sampled_answers
from loratory.engine.runs.provenance import find_warm_start, start_of
from loratory.engine.scoring.base import Scorer
from loratory.engine.scoring.scorers.judge import JudgingCost, judging_cost, key_environment
from loratory.engine.section import Section, setting

WORKER_MODULE = "loratory.engine.evaluation.worker.main"
_EQUAL = 1e-6  # rewards closer than this are equal
_MOST_TIED = 0.85  # of the groups: with more, a step learns from next to nothing
_HACKED = 0.5  # of the highest reward
_FAILING = 0.1  # of the answers
_PASSES = 3  # times a forward pass that a training pass takes: the backward pass computes two products for each one

_EASIER = (
    "Choose easier rows: those that the model sometimes answers.",
    "Train supervised on some answers first, then start from that adapter.",
    "Give partial credit: a scorer with a tolerance, ROUGE-L or a format of its own.",
)

VerdictKind = Literal["can_learn", "too_hard", "solved", "hackable", "constant", "failing"]
TITLES: Mapping[VerdictKind, str] = {
    "can_learn": "Can learn", "too_hard": "Too hard", "solved": "Solved already", "hackable": "Can be hacked",
    "constant": "Tells nothing apart", "failing": "A scorer fails",
}  # fmt: skip


class TryRewardConfig(Section):
    """Settings of one try."""

    prompts: int | None = setting(20, "Prompts to try", ge=1, le=100_000)
    """Training prompts, spread evenly, that the model answers as in the run. More make the shares more certain; empty answers all."""


class TryRewardOrder(FrozenModel):
    """The request for the worker process, with folders and device resolved."""

    plan: LoadPlan
    run: RunConfig
    settings: TryRewardConfig
    device: Device


class BadAnswer(FrozenModel):
    """A deliberately bad answer and what it earns, as a mean over the prompts."""

    name: str  # as in "the empty answer"
    text: str  # of the first prompt
    reward: float | None


class TryRewardResult(FrozenModel):
    """The answers to all prompts, and the times that they took."""

    prompts: tuple[PromptSamples, ...]
    bad_answers: tuple[BadAnswer, ...]
    scorers: tuple[str, ...]  # their labels
    highest: float  # the reward of an answer with full scores
    generation_seconds: float
    scoring_seconds: float
    forward_seconds: float  # of one pass over all prompts with their answers
    notes: tuple[str, ...] = ()
    train_prompts: int = 0  # of the data; those of `prompts` are some of them, or all
    held_out: tuple[int, ...] = ()  # rows that the run would hold out, from 0

    @property
    def sometimes_right(self) -> list[int]:
        """The rows, from 0, whose answers differ in their reward: a step learns from these alone."""
        return sorted(prompt.row for prompt in self.prompts if not prompt.is_tied)

    def keep_sometimes(self, rows: int) -> list[Mark]:
        """Return the operations on a set of so many rows that leave `sometimes_right`, and hold out what is held out now.

        Raises:
            DatasetError: If no prompt was sometimes right.
        """
        if not (right := self.sometimes_right):
            raise DatasetError(f"None of {len(self.prompts):,} prompts was sometimes right.", _EASIER[0])
        rest = sorted({*range(rows)}.difference(right, self.held_out))
        marks = {"drop": rest, "split": sorted(self.held_out)}
        return [
            Mark.model_validate({"kind": kind, "rows": text_of_rows(numbers), "text": "try-reward"})
            for kind, numbers in marks.items()
            if numbers
        ]

    @property
    def answers(self) -> list[AnswerSample]:
        """All answers."""
        return [answer for prompt in self.prompts for answer in prompt.answers]

    @property
    def rewards(self) -> list[float]:
        """All rewards."""
        return [reward for prompt in self.prompts for reward in prompt.rewards]

    @property
    def pass_at_1(self) -> float:
        """The share of answers that pass."""
        return fmean(answer.passes for answer in self.answers)

    @property
    def pass_at_all(self) -> float:
        """The share of prompts of which at least one answer passes."""
        return fmean(any(answer.passes for answer in prompt.answers) for prompt in self.prompts)

    @property
    def tied(self) -> int:
        """The number of groups without a difference."""
        return sum(prompt.is_tied for prompt in self.prompts)

    @property
    def cut_share(self) -> float:
        """The share of answers that were cut at the limit."""
        return fmean(answer.is_cut for answer in self.answers)

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of an answer."""
        return fmean(answer.tokens for answer in self.answers)

    def step_seconds(self, config: RunConfig) -> float:
        """Return the seconds of an optimizer step, as the mean of those that share a rollout."""
        training = config.training
        share = training.per_device_train_batch_size * training.gradient_accumulation_steps / len(self.prompts)
        rollout = (self.generation_seconds + self.scoring_seconds) / training.num_iterations
        passes = _PASSES + (training.beta > 0) + (training.num_iterations > 1) / training.num_iterations
        return share * (rollout + passes * self.forward_seconds)

    def judging_cost(self, config: RunConfig, steps: int) -> JudgingCost | None:
        """Return what judges cost in so many steps with answers as long as these; None without a judge."""
        texts = (
            f"{prompt.prompt}{prompt.reference}{answer.text}" for prompt in self.prompts for answer in prompt.answers
        )
        tokens = fmean(len(text.encode()) / 3 for text in texts)
        return judging_cost(config.training.rewards, sampled_answers(config, steps), tokens)

    def facts(self, config: RunConfig) -> dict[str, float]:
        """Return the figures of a try, shares from 0 to 1, by a plain name."""
        return {
            "mean_reward": fmean(self.rewards or [0.0]), "pass@1": self.pass_at_1,
            f"pass@{config.training.num_generations}": self.pass_at_all, "tied_groups": self.tied / len(self.prompts),
            "cut_answers": self.cut_share, "mean_tokens": self.mean_tokens, "step_seconds": self.step_seconds(config),
        }  # fmt: skip


class RewardVerdict(NamedTuple):
    """What a try says of the rewards: a sentence with its reason, and what helps."""

    kind: VerdictKind
    reason: str
    cures: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return the kind in two or three words."""
        return TITLES[self.kind]


def judge(result: TryRewardResult) -> RewardVerdict:
    """Return whether a run can learn from its rewards."""
    groups, rewards, highest = len(result.prompts), result.rewards, result.highest
    if (failing := _failing(result)) is not None:
        return failing
    mean, bad = fmean(rewards), [answer for answer in result.bad_answers if answer.reward is not None]
    totals = [*rewards, *(answer.reward for answer in bad if answer.reward is not None)]
    if max(totals) - min(totals) < _EQUAL and mean > 0:
        reason = f"Every answer earns {mean:.2f}, the deliberately bad ones too."
        return RewardVerdict("constant", reason, ("Use a scorer that compares with the reference.",))
    worst = max(bad, key=lambda answer: answer.reward or 0.0, default=None)
    if worst is not None and (worst.reward or 0.0) >= max(_HACKED * highest, mean - 0.1 * highest):
        reason = f"{worst.name.capitalize()} earns {worst.reward:.2f} of {highest:.2f}, the model's answers {mean:.2f}."
        return RewardVerdict(
            "hackable", reason, ("Add a scorer that this answer fails, such as equals, number or length.",)
        )
    equal = f"{result.tied} of {groups} groups have no difference"
    if result.tied <= _MOST_TIED * groups:
        reason = f"The answers of {groups - result.tied} of {groups} prompts differ in their reward."
        return RewardVerdict("can_learn", reason, tuple(_warnings(result, mean)))
    if mean >= 0.9 * highest:
        reason = f"{equal}, and the mean reward is {mean:.2f} of {highest:.2f}."
        return RewardVerdict("solved", reason, ("Choose harder prompts, or a stricter scorer.",))
    zeros = sum(prompt.is_tied and max(prompt.rewards, default=0.0) < _EQUAL for prompt in result.prompts)
    cut = ("Raise max_completion_length: most answers are cut.",) if result.cut_share > 0.5 else ()
    reason = f"{zeros} of {groups} groups are all zero." if zeros > result.tied / 2 else f"{equal}."
    return RewardVerdict("too_hard", reason, (*_EASIER, *cut))


def _failing(result: TryRewardResult) -> RewardVerdict | None:
    """Return the verdict on a scorer that often gives no score."""
    for number, label in enumerate(result.scorers):
        reasons = Counter(v.reason for answer in result.answers if (v := answer.verdicts[number]).score is None)
        if reasons.total() > _FAILING * len(result.answers) or not result.rewards:
            (reason, _), count = (*reasons.most_common(1), ("", 0))[0], reasons.total()
            what = f"{label} gave no score for {count} of {len(result.answers)} answers"
            return RewardVerdict(
                "failing", f"{what}: {reason}" if reason else f"{what}.", ("Correct it, then try again.",)
            )
    return None


def _warnings(result: TryRewardResult, mean: float) -> Iterator[str]:
    if result.tied > len(result.prompts) / 2:
        yield f"{result.tied} of {len(result.prompts)} groups have no difference, so more than half of each step is lost."
    if result.cut_share > 0.2:
        yield f"{result.cut_share:.0%} of the answers are cut at the limit; raise max_completion_length."
    for answer in result.bad_answers:
        if answer.reward is not None and answer.reward > max(mean, 0.1 * result.highest):
            yield f"{answer.name.capitalize()} earns {answer.reward:.2f}, more than the model's answers ({mean:.2f}): watch what the answers become."


_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")
_MARKUP = re.compile(r"<[^<>]{1,40}>|```\w*|\\boxed")


def bad_answers(prompt: str, reference: str, choices: Sequence[str], longest_tokens: int) -> dict[str, str]:
    """Return deliberately bad answers to a prompt, by name; `choices` are answers of the whole dataset."""
    return {
        "the empty answer": "",
        "the prompt repeated": prompt,
        "the reference's format without content": _without_content(reference),
        "all choices at once": ", ".join(choices),
        "a very long answer": "word " * max(200, longest_tokens),
    }


def choices_of(columns: Mapping[str, Any], references: Sequence[str], scorers: Sequence[Scorer]) -> list[str]:
    """Return what an answer may be: the choices that a scorer finds in the row, else the most frequent references."""
    for scorer in scorers:
        choices = columns.get(getattr(scorer, "choices_column", ""))
        if isinstance(choices, list | tuple) and choices:
            return list(map(str, choices))
    return [reference for reference, _ in Counter(filter(None, references)).most_common(20)]


def _without_content(text: str) -> str:
    """Return a text with its markup and signs alone; of JSON, the same keys with empty values."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict | list):
        return json.dumps(_without_values(value))
    pieces, end = [], 0
    for mark in _MARKUP.finditer(text):
        pieces += [_WORD.sub("", text[end : mark.start()]), mark[0]]
        end = mark.end()
    return "".join([*pieces, _WORD.sub("", text[end:])])


def _without_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_values(entry) for key, entry in value.items()}
    return type(value)() if value is not None else None  # "", 0, False, []


@dataclass(eq=False)
class TryRewardJob:
    """One try; can be stopped from another thread. `prompts` has the prompts so far, while it runs."""

    home: LoratoryHome
    config: RunConfig
    settings: TryRewardConfig = field(default_factory=TryRewardConfig)
    choose: Callable[..., Device] = choose_device
    prompts: list[PromptSamples] = field(default_factory=list, init=False)
    _stop_event: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, on_progress: OnProgress = lambda _: None) -> TryRewardResult:
        """Let the model answer, score its answers and bad ones.

        Raises:
            ConfigError: If the person of a lab may not use one of the settings.
            DatasetError: If its data is missing or has no prompt.
            ModelError: If the model cannot be loaded.
            DeviceError: If the device is in use, or its memory too small.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        order = self._order()
        access = hub_access(order.plan.model, self.config.dataset)
        job = DeviceJob(
            self.home, WORKER_MODULE, "evaluation", "Try reward", order.device, access=access, model=order.plan.model.id,
            environment=key_environment(self.config.training.rewards),
        )  # fmt: skip
        on_progress(JobProgress(phase="starting", message="Starting a process for the answers."))

        def receive(value: dict[str, Any]) -> None:
            if "prompt" in value:
                self.prompts.append(PromptSamples.model_validate(value["prompt"]))
            else:
                on_progress(JobProgress.model_validate(value))

        answer = job.run(
            "try_reward",
            order.model_dump(mode="json"),
            self._stop_event,
            receive,
            lambda present: on_progress(JobProgress(phase="starting", message=present.why_wait)),
        )
        return TryRewardResult.model_validate(answer)

    def stop(self) -> None:
        """Stop within seconds; what was answered stays in `prompts`."""
        self._stop_event.set()

    def _order(self) -> TryRewardOrder:
        config, home = self.config, self.home
        if problems := lab_problems(config, home):
            raise ConfigError(problems)
        if AllowedPaths.for_home(home) is not None:
            config = with_allowed_paths(config, home)
        runs, start = home.runs / (home.owner or local_owner()), None
        if config.adapter.warm_start is not None:
            find_warm_start(config.adapter.warm_start, runs, home)
            start = start_of(config, runs, home)
        target = ChatTarget(model=config.model, tuned=AdapterChoice(folder=start) if start is not None else None)
        plan = plan_load(target, home)
        return TryRewardOrder(plan=plan, run=config, settings=self.settings, device=self.choose(config.run))
