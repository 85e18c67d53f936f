"""A scorer that a person wrote: a Python file with a function called `score`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from loratory.engine.errors import shorten
from loratory.engine.scoring.base import Example, NoScoreError, Program, SandboxedScorer, ScoredAnswer
from loratory.engine.section import setting

_STARTS_WITHIN_SECONDS = 20.0  # imports, which may take longer than an answer
_MOST_BYTES = 1 << 20


class FileScorer(SandboxedScorer):
    """A file of Python."""

    label, sentence = "File", "What `def score(prompt, answer, **columns) -> float | None` of a Python file returns."
    example_file: ClassVar = (
        'def score(prompt, answer, **columns):\n    return answer.count("!") / 2 if answer else None\n'
    )
    examples: ClassVar[tuple[Example, ...]] = (
        Example("Yes!", 0.5, {}, {"path": "score.py"}),
        Example("Yes!!", 1.0, {}, {"path": "score.py"}),
        Example("Yes!!!", None, {}, {"path": "score.py"}),
        Example("<think>!</think>Yes", 0.0, {}, {"path": "score.py"}),
        Example("", None, {}, {"path": "score.py"}),
    )
    keeps_programs: ClassVar[bool] = True

    scorer: Literal["file"]
    path: str = setting(..., "File", min_length=1, max_length=4000)
    """The Python file, which runs in a sandbox. A column called answer is passed as column_answer."""

    def open(self, programs: Sequence[Program]) -> None:
        """Let the program run the file."""
        try:
            with Path(self.path).expanduser().open("rb") as file:
                source = file.read(_MOST_BYTES).decode()
        except (OSError, ValueError) as error:
            raise NoScoreError(f"{Path(self.path).name} cannot be read ({type(error).__name__}).") from None
        self._value(programs[0].request({"source": source}, _STARTS_WITHIN_SECONDS))

    def run(self, row: ScoredAnswer, programs: Sequence[Program]) -> Any:
        """Return what the file's `score` does."""
        columns = {
            f"column_{name}" if name in ("prompt", "answer") else name: row.columns[name] for name in row.columns
        }
        return self._value(programs[0].request({**row._asdict(), "columns": columns}, self.seconds))

    def _value(self, answer: dict[str, Any]) -> Any:
        if "raised" in answer:
            name, text = answer["raised"]
            raise NoScoreError(f"{Path(self.path).name} failed: {name}: {shorten(text, 200)}.")
        return answer.get("value")
