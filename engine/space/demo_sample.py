"""What the demo page shows besides the run itself: rows token by token, and answers of base and tuned; computed once."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from engine.accounts.people import DEMO_OWNER
from engine.data.contract import DatasetPage, PageRow
from engine.files import read_model, write_atomically
from engine.inspector.session import Inspector
from engine.paths import LoratoryHome
from engine.runs.run import Run
from engine.space.demo_chat import DemoAnswer, DemoAnswers

_SHOWN_ROWS = 3
_ANSWERED_ROWS = 3
_LONGEST_QUESTION = 300  # characters

Ask = Callable[[str], DemoAnswers]


class SampleAnswers(BaseModel, frozen=True):
    """A question of a held-out row, the answer in the data, and what base and tuned answer."""

    prompt: str
    reference: str
    base: DemoAnswer
    tuned: DemoAnswer


class DemoSample(BaseModel, frozen=True):
    """Rows of the data as the model is trained on them, and answers to questions that it was not trained on."""

    page: DatasetPage | None = None
    answers: tuple[SampleAnswers, ...] | None = None  # None before they are known; none where no row was held out


class SampleFile:
    """Keeps the sample of a run in the home, where a restart finds it."""

    def __init__(self, home: LoratoryHome, run: Run) -> None:
        self.path: Path = home.of(DEMO_OWNER).cache / f"{run.id}.json"
        self._run = run

    def read(self) -> DemoSample:
        """Return what is known; what cannot be read is computed again."""
        return read_model(self.path, DemoSample) or DemoSample()

    def write_rows(self, inspector: Inspector) -> DemoSample:
        """Render some rows of the run's data as training reads them.

        Raises:
            EngineError: If data or tokenizer cannot be read, or the file cannot be written.
        """
        config = self._run.folder.read_config()
        page = inspector.preview(config.dataset, config.model, config.training.max_length, count=_SHOWN_ROWS)
        return self._write(self.read().model_copy(update={"page": page}))

    def write_answers(self, inspector: Inspector, ask: Ask) -> DemoSample:
        """Let base and tuned answer questions of rows that were held out.

        Raises:
            EngineError: If the data cannot be read, nothing can be asked now, or the file cannot be written.
        """
        answers = []
        for prompt, reference in self._questions(inspector):
            pair = ask(prompt)
            answers.append(SampleAnswers(prompt=prompt, reference=reference, base=pair.base, tuned=pair.tuned))
        return self._write(self.read().model_copy(update={"answers": tuple(answers)}))

    def _questions(self, inspector: Inspector) -> list["_Question"]:
        config = self._run.folder.read_config()
        training = config.training
        held_out = inspector.held_out(
            config.dataset, config.model, training.max_length, seed=training.seed, count=4 * _ANSWERED_ROWS
        )
        rows = inspector.preview(config.dataset, rows=held_out.rows).rows if held_out.rows else ()
        questions = filter(None, map(_question, rows))
        return [question for question in questions if len(question.prompt) <= _LONGEST_QUESTION][:_ANSWERED_ROWS]

    def _write(self, sample: DemoSample) -> DemoSample:
        with contextlib.suppress(FileExistsError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self.path, sample.model_dump_json())
        return sample


class _Question(NamedTuple):
    prompt: str
    reference: str


def _question(row: PageRow) -> _Question | None:
    """Return the first question of a row and its answer; None where it does not begin with one."""
    messages = row.conversation.messages if row.conversation is not None else ()
    turns = [message for message in messages if message.role != "system"][:2]
    if [message.role for message in turns] != ["user", "assistant"]:
        return None
    return _Question(turns[0].content, turns[1].content)
