"""Quality: what the scorers of a dataset give its own answers."""

from loratory.engine.data.conversation import Conversation
from loratory.engine.data.passes.check import MAX_LISTED
from loratory.engine.data.passes.reader import DatasetRow
from loratory.engine.data.workshop.checks.base import CheckContext, CheckedRow, RowCheck, RowFinding
from loratory.engine.scoring.base import ScoredAnswer
from loratory.engine.scoring.scorers.judge import key_environment
from loratory.engine.scoring.session import ScoringSession, total

_AT_ONCE = 64  # rows whose answers are scored; a stop waits for them


class Quality(RowCheck):
    """Answers that the scorers of the dataset give less than the score wanted. Rows that have no score stay."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._waiting: list[tuple[int, ScoredAnswer]] = []
        self._highest = sum(max(0.0, scorer.weight) for scorer in context.scorers) or 1.0
        key_environment(context.scorers)  # a missing key is an error now, not one of each row

    def add(self, row: CheckedRow) -> None:
        if self.context.scorers and row.answer is not None:
            self._waiting.append((row.number, row.answer))
            if len(self._waiting) == _AT_ONCE:
                self.finish()

    def finish(self) -> None:
        scorers, rows = self.context.scorers, self._waiting
        if not rows:
            return
        with ScoringSession(scorers) as session:
            verdicts = session.score([answer for _, answer in rows])
        for (row, _), of_row in zip(rows, verdicts, strict=True):
            pairs = zip(scorers, of_row, strict=True)
            reasons = [f"{s.label} {'–' if v.score is None else f'{v.score:.2f}'} {v.reason}".strip() for s, v in pairs]
            sum_ = total(of_row, scorers)
            if sum_ is None:
                self.kinds["without a score"] += 1
                self.findings += [RowFinding(row=row, kind="none", why="; ".join(reasons))][
                    : MAX_LISTED - len(self.findings)
                ]
                continue
            self.scores[row] = score = round(sum_ / self._highest, 4)
            if score < self.settings.score_below:
                self.report(row, f"below {self.settings.score_below:g}", f"{score:.2f}: {'; '.join(reasons)}")
        rows.clear()


def own_answer(row: DatasetRow) -> ScoredAnswer | None:
    """Return the last answer of a row with what comes before it, and all columns; None of a row without one."""
    example, columns = row.example, dict(row.record.value or {})
    if not isinstance(example, Conversation):
        return ScoredAnswer("", example.text(), columns) if example is not None else None
    answers = [number for number, turn in enumerate(example.messages) if turn.role == "assistant"]
    if not answers or example.kind == "prompts":
        return None
    prompt = "\n".join(turn.content for turn in example.messages[: answers[-1]])
    return ScoredAnswer(prompt, example.messages[answers[-1]].content, columns)
