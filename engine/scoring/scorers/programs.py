"""Scorers that run Python in a sandbox: a file that a person wrote, and tests of the answer's code."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from loratory.engine.errors import shorten
from loratory.engine.scoring.base import Example, NoScoreError, Program, SandboxedScorer, ScoredAnswer, Verdict, fences
from loratory.engine.section import setting

_STARTS_WITHIN_SECONDS = 20.0  # imports, which may take longer than an answer
_MOST_BYTES = 1 << 20
_FILE = {"path": "score.py"}
_ADD = {"tests": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"}


class FileScorer(SandboxedScorer):
    """A file of Python."""

    label, sentence = "File", "What `def score(prompt, answer, **columns) -> float | None` of a Python file returns."
    example_file: ClassVar = 'def score(prompt, answer, **_):\n    return answer.count("!") / 2 if answer else None\n'
    examples = (Example("Yes!", 0.5, {}, _FILE), Example("", None, {}, _FILE))
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
        reply = programs[0].request({"source": source, "names": ["score"]}, _STARTS_WITHIN_SECONDS)
        if "score" not in reply.get("value", ()):
            raise NoScoreError(f"{Path(self.path).name} {_failure(reply)}.")

    def run(self, row: ScoredAnswer, programs: Sequence[Program]) -> Any:
        """Return what the file's `score` does."""
        names = {"prompt": "column_prompt", "answer": "column_answer"}
        columns = {names.get(name, name): value for name, value in row.columns.items()}
        reply = programs[0].request({**row._asdict(), "columns": columns}, self.seconds)
        return reply["value"] if "value" in reply else Verdict(None, f"{Path(self.path).name} {_failure(reply)}.")


def _failure(reply: dict[str, Any]) -> str:
    error, text = reply.get("raised", ("NameError", "no function called score"))
    return f"failed: {error}: {shorten(text, 200)}"


class CodeTests(SandboxedScorer):
    """Tests of Python code."""

    label, sentence = "Code tests", "1 where the Python code of the answer passes the tests of its row."
    examples = (
        Example("```python\ndef add(a, b):\n    return a + b\n```", 1.0, _ADD),
        Example("def add(a, b): return 3", 0.5, _ADD, {"partial_credit": True}),
    )
    programs: ClassVar[int] = 2
    scorer: Literal["code_tests"]
    column: str = setting("tests", "Tests column", min_length=1, max_length=200)
    """The column that has the tests: assertions, functions called test_…, or check(candidate) with the row's entry_point."""
    before_column: str = setting("", "Column before the answer", max_length=200)
    """A column with code that runs before the answer's, such as a prompt that the answer completes. Empty runs none."""
    partial_credit: bool = setting(False, "Partial credit")
    """Gives the share of tests that pass."""

    def run(self, row: ScoredAnswer, programs: Sequence[Program]) -> Verdict:
        """Run the code in one sandbox and the tests in another, and pass their calls on."""
        (code, tests), end = programs, time.monotonic() + self.seconds
        before = f"{row.value(self.before_column)}\n" if self.before_column else ""
        question = {"tests": row.references(self.column), "entry_point": str(row.columns.get("entry_point", ""))}
        reply = code.request({"source": before + code_of(row.answer)}, self.seconds)
        if "raised" in reply:
            return Verdict(0.0, f"The code of the answer {_failure(reply)}.")
        message = tests.request({**question, "names": reply["value"]}, end - time.monotonic())
        while "operation" in message:
            message = tests.request(code.request(message, end - time.monotonic()), end - time.monotonic())
        if "raised" in message:
            raise NoScoreError(f"The tests {_failure(message)}.")
        passed, total, reason = message["done"]
        share = passed / total if total else None
        return Verdict(share if self.partial_credit or share is None else float(share == 1), reason)


def code_of(answer: str) -> str:
    """Return the last fence of Python that defines something, else the last one, else the answer."""
    codes = fences(answer, "python", "python3", "py") or [answer]
    return next((code for code in reversed(codes) if "def " in code or "class " in code), codes[-1])
