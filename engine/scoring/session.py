"""Score many answers: sandboxed scorers in parallel processes, judges with a few requests at a time."""

import functools
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any

from loratory.engine.endpoint import Endpoint
from loratory.engine.errors import EngineError
from loratory.engine.scoring.base import NoScoreError, SandboxedScorer, ScoredAnswer, Scorer, Verdict
from loratory.engine.scoring.sandbox.program import Program
from loratory.engine.scoring.scorers.judge import Complete, Judge

_JUDGED_AT_ONCE = 8
_MOST_FAILURES = 3  # of a judge in a row, before the other answers of a batch go without
_POLL_SECONDS = 0.1
_STOPPED = "Scoring was stopped."


def open_endpoint(judge: Judge) -> Complete:
    """Return `complete` of a judge's endpoint, with the key of this process's environment."""
    key = os.environ.get(judge.key_variable, "") if judge.key_variable else None
    return Endpoint(judge.model_dump(include={"endpoint", "model", "answer_tokens"}), key, judge.timeout).complete


class ScoringSession(AbstractContextManager["ScoringSession"]):
    """Scores answers with some scorers; what goes wrong is a Verdict of None with the reason.

    Args:
        workers: Programs of sandboxed scorers at a time.
        ask: Opens the endpoint of a judge; another one checks addresses, or is a stand-in.
    """

    def __init__(
        self, scorers: Sequence[Scorer], workers: int | None = None, ask: Callable[[Judge], Complete] = open_endpoint
    ) -> None:
        self.scorers = tuple(scorers)
        self._open_endpoint = functools.cache(ask)
        self._sandboxes = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), "sandbox")
        self._others = ThreadPoolExecutor(_JUDGED_AT_ONCE, "scorer")
        self._failures: dict[Judge, list[str]] = defaultdict(list)  # in a row
        self._kept: dict[tuple[Scorer, int], tuple[Program, ...]] = {}  # of a scorer and a thread
        self._running: set[Program] = set()
        self._is_stopped = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all programs; scores that are under way become None."""
        self._is_stopped = True  # before: a program that starts now ends itself
        for program in tuple(self._running):
            program.kill()
        self._others.shutdown(wait=False, cancel_futures=True)
        self._sandboxes.shutdown(cancel_futures=True)
        for program in tuple(self._running):
            program.close()

    def score(
        self, rows: Sequence[ScoredAnswer], between: Callable[[], None] = lambda: None
    ) -> list[tuple[Verdict, ...]]:
        """Return for each row a verdict of each scorer.

        Args:
            between: Is called several times a second; what it raises stops the session.
        """
        self._failures.clear()
        verdicts = [[self._submit(scorer, row) for scorer in self.scorers] for row in rows]
        waiting = {verdict for of_row in verdicts for verdict in of_row}
        try:
            while waiting:
                waiting = wait(waiting, _POLL_SECONDS).not_done
                between()
        except BaseException:
            self.close()
            raise
        return [tuple(verdict.result() for verdict in of_row) for of_row in verdicts]

    def _submit(self, scorer: Scorer, row: ScoredAnswer) -> Future[Verdict]:
        if isinstance(scorer, SandboxedScorer):
            return self._sandboxes.submit(scorer.score, row, functools.partial(self._run_in_sandbox, scorer))
        rate = functools.partial(self._run_judge, scorer) if isinstance(scorer, Judge) else None
        return self._others.submit(scorer.score, row, rate)

    def _run_in_sandbox(self, scorer: SandboxedScorer, row: ScoredAnswer) -> Any:
        key = scorer, threading.get_ident()
        programs = self._kept.pop(key, ())
        try:
            if not programs:
                seconds = 0 if scorer.keeps_programs else scorer.seconds
                programs = tuple(Program(scorer.memory_mib, seconds) for _ in range(scorer.programs))
                self._running.update(programs)
                if self._is_stopped:
                    raise NoScoreError(_STOPPED)
                scorer.open(programs)
            value = scorer.run(row, programs)
            if scorer.keeps_programs:
                self._kept[key], programs = programs, ()
            return value
        finally:
            for program in programs:
                self._running.discard(program)
                program.close()

    def _run_judge(self, judge: Judge, row: ScoredAnswer) -> Verdict:
        failures = self._failures[judge]
        if self._is_stopped:
            raise NoScoreError(_STOPPED)
        if len(reasons := list(failures)) >= _MOST_FAILURES:  # other threads change them
            raise NoScoreError(reasons[-1])
        try:
            verdict = judge.run(row, self._open_endpoint(judge))
        except EngineError as error:
            failures.append(str(error))
            raise NoScoreError(str(error)) from None
        failures.clear()
        return verdict


def total(verdicts: Sequence[Verdict], scorers: Sequence[Scorer]) -> float | None:
    """Return the weighted sum of scores; a missing one counts as 0, and None where all are missing.

    Source: TRL's GRPOTrainer, `(rewards_per_func * reward_weights).nansum(dim=1)`.
    """
    scores = [v.score * s.weight for v, s in zip(verdicts, scorers, strict=True) if v.score is not None]
    return sum(scores) if scores else None
