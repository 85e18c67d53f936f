"""A try of rewards without a model: four prompts, whose answers earn different rewards."""

from dataclasses import dataclass

from loratory.engine.chat.contract import JobProgress, OnProgress
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples
from loratory.engine.evaluation.try_reward import BadAnswer, TryRewardJob, TryRewardResult
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.scoring.base import Verdict


@dataclass(eq=False)
class FakeTry(TryRewardJob):
    """Answers a prompt at a time, at a human pace."""

    pace: float = 0.0

    def run(self, on_progress: OnProgress = lambda _: None) -> TryRewardResult:
        """Answer after a while, or end early."""
        scorers = self.config.training.rewards
        for number in range(4):
            if self._stop_event.wait(self.pace):
                raise CancelledRequestError
            scores = (1.0, 0.0) if number % 2 else (0.0, 0.0)
            answers = tuple(
                AnswerSample.from_verdicts(
                    f"It is {number + turn}.", 5, tuple(Verdict(score, "" if score else "Another number.") for _ in scorers),
                    scorers, is_cut=False,
                )
                for turn, score in enumerate(scores)
            )  # fmt: skip
            prompt = PromptSamples(row=number, prompt=f"What is {number} + 0?", reference=str(number), answers=answers)
            self.prompts.append(prompt)
            on_progress(JobProgress(phase="measuring", message=f"{number + 1} of 4 prompts are answered."))
        return TryRewardResult(
            prompts=tuple(self.prompts),
            bad_answers=(BadAnswer(name="the empty answer", text="", reward=0.0),),
            scorers=tuple(scorer.label for scorer in scorers),
            highest=float(len(scorers)),
            generation_seconds=2.0,
            scoring_seconds=0.5,
            forward_seconds=0.25,
            train_prompts=len(self.prompts) if self.settings.prompts is None else 6,
            held_out=(4, 5),
        )
