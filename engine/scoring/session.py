"""Score many answers: pure scorers here, sandboxed ones in parallel processes, judges with a few requests at a time."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any

from loratory.engine.endpoint import Endpoint
from loratory.engine.errors import EngineError
from loratory.engine.scoring.base import NoScoreError, SandboxedScorer, ScoredAnswer, Scorer, Verdict
from loratory.engine.scoring.sandbox.program import Program
from loratory.engine.scoring.scorers.judge import AskModel, Judge

_JUDGED_AT_ONCE = 8
_MOST_FAILURES = 3  # of a judge in a row, before the other answers of a batch go without
_POLL_SECONDS = 0.1
_STOPPED = Verdict(None, "Scoring was stopped.")


def open_endpoint(judge: Judge) -> AskModel:
    """Return the endpoint of a judge, with the key of this process's environment."""
    key = os.environ.get(judge.key_variable, "") if judge.key_variable else None
    return Endpoint(judge.model_dump(include={"endpoint", "model", "answer_tokens"}), key, judge.timeout)


class ScoringSession(AbstractContextManager["ScoringSession"]):
    """Scores answers with some scorers; what goes wrong is a Verdict of None with the reason.

    Args:
        workers: Programs of one sandboxed scorer at a time.
        ask: Returns the endpoint of a judge; another one checks addresses, or is a stand-in.
    """

    def __init__(
        self, scorers: Sequence[Scorer], workers: int | None = None, ask: Callable[[Judge], AskModel] = open_endpoint
    ) -> None:
        self.scorers = tuple(scorers)
        self._ask = ask
        self._sandboxes = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), "sandbox")
        self._judges = ThreadPoolExecutor(_JUDGED_AT_ONCE, "judge")
        self._idle: dict[int, SimpleQueue[tuple[Program, ...]]] = {n: SimpleQueue() for n in range(len(self.scorers))}
        self._endpoints: dict[tuple[int, str], AskModel] = {}
        self._lock = threading.Lock()  # guards the two below
        self._running: set[Program] = set()
        self._is_stopped = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all programs; scores that are under way become None."""
        self._judges.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_stopped = True
            for program in self._running:
                program.kill()
        self._sandboxes.shutdown(cancel_futures=True)
        for program in self._running:
            program.close()

    def score(
        self, rows: Sequence[ScoredAnswer], between: Callable[[], None] = lambda: None
    ) -> list[tuple[Verdict, ...]]:
        """Return for each row a verdict of each scorer.

        Args:
            between: Is called several times a second; what it raises stops the session.
        """
        verdicts = [[_STOPPED] * len(self.scorers) for _ in rows]
        futures: dict[Future[Verdict], tuple[int, int]] = {}
        for number, scorer in enumerate(self.scorers):
            failures: list[str] = []
            for index, row in enumerate(rows):
                if isinstance(scorer, SandboxedScorer):
                    futures[self._sandboxes.submit(self._run_in_sandbox, number, scorer, row)] = index, number
                elif isinstance(scorer, Judge):
                    futures[self._judges.submit(self._run_judge, scorer, row, failures)] = index, number
        try:
            for index, row in enumerate(rows):
                for number, scorer in enumerate(self.scorers):
                    if not isinstance(scorer, SandboxedScorer | Judge):
                        verdicts[index][number] = scorer.score(row)
                between()
            left = set(futures)
            while left:
                done, left = wait(left, _POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    index, number = futures[future]
                    verdicts[index][number] = future.result()
                between()
        except BaseException:
            self.close()
            raise
        return [tuple(of_row) for of_row in verdicts]

    def _run_in_sandbox(self, number: int, scorer: SandboxedScorer, row: ScoredAnswer) -> Verdict:
        programs: list[Program] = []
        is_open = False

        def rate(row: ScoredAnswer) -> Any:
            nonlocal is_open
            try:
                programs.extend(self._idle[number].get_nowait())
            except Empty:
                for _ in range(scorer.programs):
                    programs.append(self._start(scorer))
                scorer.open(programs)
            is_open = True
            return scorer.run(row, programs)

        verdict = scorer.attempt(row, rate)
        if scorer.keeps_programs and is_open and all(program.is_usable for program in programs):
            self._idle[number].put(tuple(programs))
        else:
            with self._lock:
                self._running.difference_update(programs)
            for program in programs:
                program.close()
        return verdict

    def _start(self, scorer: SandboxedScorer) -> Program:
        with self._lock:
            if self._is_stopped:
                raise NoScoreError(_STOPPED.reason)
            program = Program(scorer.memory_mib, 0 if scorer.keeps_programs else scorer.seconds)
            self._running.add(program)
        return program

    def _run_judge(self, scorer: Judge, row: ScoredAnswer, failures: list[str]) -> Verdict:
        def rate(row: ScoredAnswer) -> Any:
            if self._is_stopped:
                raise NoScoreError(_STOPPED.reason)
            if len(failures) >= _MOST_FAILURES:
                raise NoScoreError(failures[-1])
            try:
                key = threading.get_ident(), scorer.model_dump_json()  # an endpoint learns what its server takes
                if key not in self._endpoints:
                    self._endpoints[key] = self._ask(scorer)
                verdict = scorer.run(row, self._endpoints[key])
            except EngineError as error:
                failures.append(str(error))
                raise NoScoreError(str(error)) from None
            failures.clear()
            return verdict

        return scorer.attempt(row, rate)


def total(verdicts: Sequence[Verdict], scorers: Sequence[Scorer]) -> float | None:
    """Return the weighted sum of scores; a missing one counts as 0, and None where all are missing.

    Source: TRL's GRPOTrainer, `(rewards_per_func * reward_weights).nansum(dim=1)`.
    """
    scores = [v.score * s.weight for v, s in zip(verdicts, scorers, strict=True) if v.score is not None]
    return sum(scores) if scores else None
