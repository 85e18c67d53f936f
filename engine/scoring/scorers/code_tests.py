"""A scorer of Python code: the row's tests, run against the code of the answer."""

import time
from collections.abc import Sequence
from typing import ClassVar, Literal

from loratory.engine.scoring.base import Example, Program, SandboxedScorer, ScoredAnswer, Verdict, fences
from loratory.engine.section import setting

_ADD = {"tests": "assert add(1, 2) == 3\nassert add(-1, 1) == 0"}


class CodeTests(SandboxedScorer):
    """Tests of Python code."""

    label, sentence = "Code tests", "1 where the Python code of the answer passes the tests of its row."
    examples: ClassVar[tuple[Example, ...]] = (
        Example("```python\ndef add(a, b):\n    return a + b\n```", 1.0, _ADD),
        Example("def add(a, b): return 3", 0.5, _ADD, {"partial_credit": True}),
        Example("import sys\nprint('passed')\nsys.exit(0)", 0.0, _ADD),
        Example("class E:\n    __eq__ = lambda *_: True\ndef add(a, b): return E()", 0.0, _ADD),
        Example("while True: pass", None, _ADD, {"seconds": 0.5}),
        Example("def add(a, b): return a + b", None),
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
        answer = code.request({"source": before + code_of(row.answer)}, self.seconds)
        if "raised" in answer:
            return Verdict(0.0, "The code of the answer failed: {}: {}.".format(*answer["raised"]))
        message = tests.request({**question, "names": answer["value"]}, end - time.monotonic())
        while "done" not in message:
            message = tests.request(code.request(message, end - time.monotonic()), end - time.monotonic())
        passed, total, reason = message["done"]
        share = passed / total if total else None
        return Verdict(share if self.partial_credit or share is None else float(share == 1), reason)


def code_of(answer: str) -> str:
    """Return the last fence of Python that defines something, else the last one, else the answer."""
    codes = list(fences(answer, "python", "python3", "py")) or [answer]
    return next((code for code in reversed(codes) if "def " in code or "class " in code), codes[-1])
