"""The demo of a Space: one run that is trained there once for everyone to read and to ask, and what its page shows besides."""

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.accounts.people import DEMO_OWNER, Person
from loratory.engine.config.presets import find_preset
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetPage, PageRow
from loratory.engine.errors import EngineError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.inspector.session import Inspector, InspectorSlots
from loratory.engine.lab.rules import is_shared, set_shared
from loratory.engine.lab.supervision import SNAPSHOT_FILE, QueueSnapshot
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.control import request_resume, request_stop, resume_is_requested
from loratory.engine.runs.run import Reason, Run, RunState
from loratory.engine.runs.store import RunStore
from loratory.engine.space.demo_chat import DemoAnswers, DemoBusyError, DemoChat, demo_session
from loratory.engine.supervision.launch import Launcher, Preflight

DEMO_PRESET = "quickstart-cpu"
_POLL_SECONDS = 3.0
_REPEAT_SECONDS = 60.0  # after something failed
_MOST_FAILURES = 5  # of computing what the page shows, until the server starts again
_RECORDED_SECONDS = 120.0  # for an answer that stays on the page
_MOST_ATTEMPTS = 8  # at the run
_SHOWN_ROWS = 3
_ANSWERED_ROWS = 3
_LONGEST_QUESTION = 300  # characters
_FOR_A_DEVICE: frozenset[Reason | None] = frozenset({"device_in_use", "memory", "other_persons_run"})

_log = logging.getLogger(__name__)


class DemoSample(BaseModel, frozen=True):
    """Rows of the data as the model is trained on them, and answers to questions that it was not trained on."""

    page: DatasetPage | None = None
    answers: tuple[DemoAnswers, ...] | None = None  # None before they are known; none where no row was held out


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


@dataclass(eq=False)
class Demo:
    """Has the demo run trained, and makes what its page shows.

    The run is preemptible: it saves and stops while a person's run waits for a device, and continues afterwards.
    """

    home: LoratoryHome
    launcher: Launcher  # files runs of `DEMO_OWNER`
    inspector: Inspector  # of `DEMO_OWNER`
    chat: DemoChat
    problem: str = field(default="", init=False)  # why no run started, in words for visitors

    def __post_init__(self) -> None:
        self.runs = RunStore(self.home, DEMO_OWNER)
        self._stop = threading.Event()
        self._failures = 0
        self._not_before = 0.0  # monotonic seconds
        self._began = time.time()
        self._sample: tuple[str, DemoSample] = ("", DemoSample())

    @classmethod
    def on_this_machine(cls, home: LoratoryHome, slots: InspectorSlots | None = None) -> "Demo":
        """Return the demo of a Space, with processes of its own that start when they are needed."""
        own = home.for_person(DEMO_OWNER)
        inspector = Inspector(own, (), slots)
        launcher = Launcher(RunStore(home, DEMO_OWNER), Preflight(own, inspector))
        return cls(home, launcher, inspector, DemoChat(home, demo_session(home)))

    def start(self) -> None:
        """Keep the demo going in a thread; call it once runs that were saved elsewhere are back."""
        threading.Thread(target=self._loop, name="demo", daemon=True).start()

    def close(self) -> None:
        """End the thread and the processes; a run continues."""
        self._stop.set()
        self.chat.close()
        self.inspector.close()

    @property
    def run(self) -> Run | None:
        """The newest run that completed, else the newest; None before there is one."""
        runs = self.runs.list()
        candidates = (run for run in runs if run.folder.read_state().state == "completed")
        return next(candidates, runs[0] if runs else None)

    def sample_of(self, run: Run) -> DemoSample:
        """Return what was computed for the page of a run so far."""
        if self._sample[0] != run.id:  # what cannot be read is computed again
            self._sample = (run.id, read_model(self.sample_path(run), DemoSample) or DemoSample())
        return self._sample[1]

    def sample_path(self, run: Run) -> Path:
        """Return the file with the sample of a run, which a restart finds."""
        return self.home.for_person(DEMO_OWNER).cache / f"{run.id}.json"

    def advance(self, *, computes: bool = True) -> None:
        """Do the next thing that the demo needs, if any.

        Args:
            computes: Also what takes long; else the run is only preempted and continues.

        Raises:
            EngineError: If it cannot be done now.
        """
        run = self.run
        if run is None:
            if computes:
                self.launcher.start(find_preset(DEMO_PRESET).load(), key=f"demo {self._began}")
                self.problem = ""
            return
        if not is_shared(run.folder):  # new, or brought back from elsewhere
            owner = Person(DEMO_OWNER, "member", self._began)
            set_shared(run, owner, True, AuditLog(audit_log_path(self.home)))
        state = run.folder.read_state()
        if state.state in ("starting", "running") and self._is_waited_for():
            if not run.folder.stop_request.exists():
                request_stop(run)
        elif state.is_final and state.state != "completed":
            self._continue(run, state)
        elif computes:
            self._compute(run, state)

    def _loop(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            computes = time.monotonic() >= self._not_before and self._failures < _MOST_FAILURES
            try:
                self.advance(computes=computes)
                if computes:
                    self._failures = 0
            except DemoBusyError:
                self._not_before = time.monotonic() + _REPEAT_SECONDS
            except EngineError as error:
                self._note(error)
            except Exception as error:  # the page shows what there is
                _log.exception("the demo")
                self._note(error)

    def _note(self, error: Exception) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + _REPEAT_SECONDS
        _log.warning("the demo: %s", error)
        if isinstance(error, EngineError):
            self.problem = self.without_paths(error.what)

    def without_paths(self, text: str) -> str:
        """Return words for people who may not know where the files of the Space are."""
        return text.replace(str(self.home.root), "the folder of this Space")

    def _continue(self, run: Run, state: RunState) -> None:
        if state.state == "failed":
            # Once for each start of the server: what made it fail may have been repaired, such as too little memory.
            if (state.ended or 0.0) < self._began:
                self.runs.delete(run.id)
        elif state.attempt < _MOST_ATTEMPTS and not self._is_waited_for() and not resume_is_requested(self.home, run):
            request_resume(self.home, run)

    def _is_waited_for(self) -> bool:
        """Return whether a run of a person waits for a device."""
        queue = read_model(self.home.server / SNAPSHOT_FILE, QueueSnapshot)
        waiting = queue.waiting if queue is not None else ()
        return any(entry.owner != DEMO_OWNER and entry.reason in _FOR_A_DEVICE for entry in waiting)

    def _compute(self, run: Run, state: RunState) -> None:
        config, sample = run.folder.read_config(), self.sample_of(run)
        if sample.page is None:
            length = config.training.max_length
            page = self.inspector.preview(
                config.dataset, config.model, length, count=_SHOWN_ROWS, vision=config.vision.pixels
            )
            self._save_sample(run, sample.model_copy(update={"page": page}))
        elif state.state == "completed" and sample.answers is None:
            answers = []
            for question in self._questions(config):
                pair = self.chat.answer(run, question.prompt, _RECORDED_SECONDS)
                answers.append(replace(pair, reference=question.reference))
            self._save_sample(run, sample.model_copy(update={"answers": tuple(answers)}))

    def _questions(self, config: RunConfig) -> list[_Question]:
        training, count = config.training, 4 * _ANSWERED_ROWS
        held_out = self.inspector.held_out(
            config.dataset,
            config.model,
            training.max_length,
            seed=training.seed,
            count=count,
            vision=config.vision.pixels,
        )
        rows = self.inspector.preview(config.dataset, rows=held_out.rows).rows if held_out.rows else ()
        questions = filter(None, map(_question, rows))
        return [question for question in questions if len(question.prompt) <= _LONGEST_QUESTION][:_ANSWERED_ROWS]

    def _save_sample(self, run: Run, sample: DemoSample) -> None:
        write_atomically(self.sample_path(run), sample.model_dump_json(), makes_folder=True)
        self._sample = (run.id, sample)
