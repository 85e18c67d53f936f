"""Exports of tiny models are verified with a few short answers."""

import pytest

from loratory.engine.export.worker.verify import QUESTIONS
from tests.export.exporting import ASKED


@pytest.fixture
def few_questions(monkeypatch):
    """Asks the first questions only, and ends each answer early."""
    for module in ("loratory.engine.export.worker.verify", "loratory.engine.export.worker.main"):
        monkeypatch.setattr(f"{module}.QUESTIONS", QUESTIONS[:ASKED])
    monkeypatch.setattr("loratory.engine.export.worker.verify.ANSWER_TOKENS", 6)
