"""The Python interface: what `import loratory` offers, and what commands and agents call."""

import contextlib
import functools
import inspect as inspect_module
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from loratory.engine.chat.contract import Branch, ChatRequest, ChatTarget, JobProgress
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.load import config_to_yaml, section_from_mapping
from loratory.engine.config.results import EvaluationConfig, ExportConfig, SamplingConfig
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import CheckProgress, DatasetReport
from loratory.engine.data.conversation import Message as Message
from loratory.engine.errors import ConfigError, RunError
from loratory.engine.errors import EngineError as EngineError
from loratory.engine.evaluation.job import EvaluationJob, EvaluationRequest, EvaluationResult, read_forgetting
from loratory.engine.export.contract import ExportRequest, ExportResult, save_record
from loratory.engine.export.job import ExportJob
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.session import Inspector, RenderedSequence
from loratory.engine.interface.estimate import Estimate as Estimate
from loratory.engine.interface.estimate import device_elsewhere, estimate_run, read_rows_of
from loratory.engine.interface.names import Changes, Settings, choose_target, load_config, named_path
from loratory.engine.lab.rules import lab_problems, resume_run, with_allowed_paths
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.places.run_place import Flavors
from loratory.engine.runs import control
from loratory.engine.runs.history.preference_health import Finding
from loratory.engine.runs.history.reward_health import health_findings
from loratory.engine.runs.history.run_history import HistoryReader, RunHistory, read_history
from loratory.engine.runs.history.verdict import judge
from loratory.engine.runs.run import Run as StoredRun
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.summary import RunIndex, RunQuery, RunSummary, select_runs, steps_table, summarize
from loratory.engine.supervision.launch import CheckedRun, Launcher, Preflight
from loratory.engine.supervision.scheduler import SupervisorSettings
from loratory.engine.supervision.supervisor import Supervisor, reconcile

if TYPE_CHECKING:
    import pandas as pd

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_POLL_SECONDS = 0.25


def _ignore(_: object) -> None:
    """Show no progress."""


class Workspace:
    """The runs, models and datasets of one person; as a context manager, it ends its processes."""

    def __init__(self, home: LoratoryHome, inspector: Inspector | None = None, flavors: Flavors | None = None) -> None:
        self.home = home
        self.store = RunStore(home, home.owner or local_owner())
        self.inspector = inspector or Inspector(home)
        self._preflight = Preflight(home, self.inspector, flavors=flavors)

    @classmethod
    def own(cls) -> Self:
        """Return the one of the person at the keyboard.

        Raises:
            StorageError: If the home cannot be written.
        """
        return cls(LoratoryHome.from_environment())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.inspector.close()

    def config(self, settings: Settings, changes: Changes = None) -> RunConfig:
        """Read the settings of a run.

        Args:
            settings: A YAML file, a preset's name, a run's id, or the settings themselves, by section.
            changes: Settings to change, such as `{"adapter.r": 16}`, or as `section.field=value`.

        Raises:
            ConfigError: With every problem.
            StorageError: If the file cannot be read.
        """
        config = load_config(settings, changes, self.home)
        if not self.home.owner:
            return config
        if problems := lab_problems(config, self.home):
            raise ConfigError(problems)
        return with_allowed_paths(config, self.home)

    def inspect(
        self, settings: Settings, changes: Changes = None, on_progress: Callable[[CheckProgress], None] = _ignore
    ) -> DatasetReport:
        """Read every row of the dataset: what is kept, what is left out and why, how long it is, what is trained.

        Raises as `config` does, and a DatasetError or ModelError where rows or tokenizer cannot be read.
        """
        return read_rows_of(self.config(settings, changes), self.inspector, on_progress)

    def render(self, settings: Settings, row: int, changes: Changes = None) -> tuple[RenderedSequence, ...]:
        """Return a row, counted from 1, token by token as training sees it. Raises as `inspect` does."""
        config = self.config(settings, changes)
        return self.inspector.render(
            config.dataset, config.model, config.training.max_length, row=row - 1, vision=config.vision.pixels
        )

    def estimate(
        self,
        settings: Settings,
        changes: Changes = None,
        *,
        device: Device | str | float | None = None,
        devices: int = 1,
        read_rows: bool | None = None,
        on_progress: Callable[[CheckProgress], None] = _ignore,
    ) -> Estimate:
        """Estimate memory and time of a run.

        Args:
            device: A GPU's name, such as `RTX-4090`, or its free memory in GiB; None for this machine's own.

        The others are those of `estimate_run`. Raises as `config` and `estimate_run` do.
        """
        where = device if isinstance(device, Device) else device_elsewhere(device)
        config = self.config(settings, changes)
        return estimate_run(
            config, self.inspector, device=where, devices=devices, read_rows=read_rows, on_progress=on_progress
        )

    def check(
        self, settings: Settings, changes: Changes = None, on_progress: Callable[[str], None] = _ignore
    ) -> CheckedRun:
        """Check all that a start checks, and start nothing. Raises as `config` and `Preflight.check` do."""
        return self._preflight.check(self.config(settings, changes), on_progress)

    def train(
        self,
        settings: Settings,
        changes: Changes = None,
        *,
        key: str | None = None,
        wait: bool = True,
        on_progress: Callable[[str], None] = _ignore,
    ) -> "Run":
        """Check a run and put it into the queue.

        Args:
            key: Names this request: the same key never starts a second run.
            wait: Whether to return at its end. Otherwise it starts once a server or `Run.follow` supervises it.

        Raises:
            EngineError: As `check` does, or where the person has as many waiting runs or as much on the disk as allowed.
        """
        config = self.config(settings, changes)
        run = Run(self.home, Launcher(self.store, self._preflight).start(config, key, on_progress=on_progress))
        if wait:
            run.wait()
        return run

    def sweep(
        self, configs: Sequence[RunConfig], key: str, on_progress: Callable[[str], None] = _ignore
    ) -> list["Run"]:
        """Check the runs of a sweep and put them into the queue; arguments and errors as in `Launcher.start_all`."""
        runs = Launcher(self.store, self._preflight).start_all(configs, key, on_progress=on_progress)
        return [Run(self.home, run) for run in runs]

    def run(self, run_id: str) -> "Run":
        """Return a run by its id, or the last characters of it.

        Raises:
            RunError: If there is none.
        """
        return Run(self.home, self.store.get(run_id))

    def runs(self, /, terms: str = "", **query: Any) -> list["Run"]:
        """Return runs, newest first; arguments as in `figures`."""
        return [self.run(summary.id) for summary in self.figures(terms, **query)]

    def figures(self, /, terms: str = "", **query: Any) -> list[RunSummary]:
        """Return the figures of runs, newest first, without reading the logs of those that have ended.

        Args:
            terms: Words that must all occur in name, model, dataset, method, tags or state.
            query: More fields of `RunQuery`, such as `states=("completed",)`.
        """
        if not self.home.owner:  # a lab's server supervises
            reconcile(self.home)
        return select_runs(RunIndex(self.store).summaries(), RunQuery(terms=terms, **query))

    def chat(
        self, target: str, *, checkpoint: str | None = None, on_progress: Callable[[JobProgress], None] = _ignore
    ) -> "Chat":
        """Load a run, an adapter's folder or a model, and return a chat with it.

        Raises:
            EngineError: If it is not there, or cannot be loaded.
        """
        return Chat(self.home, self.store, target, checkpoint, on_progress)


class Progress(NamedTuple):
    """How far a run is."""

    state: RunState
    history: RunHistory


class Run:
    """A run: its state, figures, curve and result."""

    def __init__(self, home: LoratoryHome, run: StoredRun) -> None:
        self.home, self._stored = home, run

    def __repr__(self) -> str:
        return f"<Run {self.id}: {self.summary.label}, {self.state}>"

    @property
    def id(self) -> str:
        """Its id."""
        return self._stored.id

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._stored.folder.path

    @property
    def state(self) -> str:
        """Its state, such as `running` or `completed`."""
        return self._stored.folder.read_state().state

    @property
    def config(self) -> RunConfig:
        """Its settings. Reading them raises a ConfigError or StorageError where the file was edited or lost."""
        return self._stored.folder.read_config()

    @property
    def settings_text(self) -> str:
        """Its settings as YAML. Raises as `config` does."""
        return config_to_yaml(self.config)

    @property
    def summary(self) -> RunSummary:
        """Its figures."""
        return summarize(self._stored)

    def findings(self, history: RunHistory | None = None) -> tuple[Finding, ...]:
        """Return the verdict on its curves, then what goes wrong in a run of preferences or rewards."""
        try:
            config = self.config
        except EngineError:  # lost or edited: the rest of the run is shown all the same
            return ()
        history = history or read_history(self._stored.folder.events)
        verdict = judge(history, config, read_forgetting(self.folder))
        return (*([verdict] if verdict is not None else []), *health_findings(history, config.training))

    def events(self) -> "pd.DataFrame":
        """Return a row for each logged step: losses, learning rate, gradient norm, tokens, speed, memory."""
        return steps_table(read_history(self._stored.folder.events))

    def follow(
        self, settings: SupervisorSettings | None = None, on_standby: Callable[[], None] = lambda: None
    ) -> Generator[Progress, None, None]:
        """Yield how far it is, several times a second until its end, supervising it where no server does.

        Args:
            on_standby: Called where a server supervises: the run continues without this process.

        Raises:
            RunError: If its folder is gone.
        """
        folder, supervisor = self._stored.folder, Supervisor(self.home, settings)
        reader = HistoryReader(folder.events)
        try:
            if supervisor.start() == "standing_by":
                on_standby()
            while True:
                if not folder.path.is_dir() and folder.path.parent.is_dir():
                    raise RunError(
                        f"The folder of {self.id} was deleted or moved, and its training ends.",
                        f"Put it back at {folder.path} and resume the run, or start another one.",
                    )
                state = folder.read_state()
                yield Progress(state, reader.update())
                if state.is_final and folder.state.exists():  # a folder that is being deleted may look like an end
                    return
                time.sleep(_POLL_SECONDS)
        finally:
            supervisor.stop()

    def wait(self) -> Self:
        """Return once it has ended.

        Raises:
            RunError: If it failed or was interrupted, with its cause.
        """
        with contextlib.closing(self.follow()) as progress:
            for _ in progress:
                pass
        summary = self.summary
        if summary.state not in ("completed", "stopped"):
            raise RunError(summary.cause or f"The run {summary.state}.", summary.advice or "See its log.")
        return self

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether it is to save and stop."""
        return self._stored.folder.stop_request.exists()

    def stop(self) -> None:
        """Save what it has learned so far, and stop. Raises a RunError if it has ended."""
        control.request_stop(self._stored)

    def resume(self) -> None:
        """Put it back into the queue, from its newest checkpoint. Raises a RunError if it cannot continue."""
        resume_run(self.home, self._stored)

    def evaluate(self, *, on_progress: Callable[[JobProgress], None] = _ignore, **settings: Any) -> EvaluationResult:
        """Measure base and tuned on the held-out rows, and let both answer some of them.

        Args:
            settings: Those of `EvaluationConfig`, such as `max_rows`.

        Raises:
            EngineError: As `EvaluationJob.run` does.
        """
        request = EvaluationRequest(
            target=ChatTarget.of_run(self.folder), settings=section_from_mapping(EvaluationConfig, settings)
        )
        return EvaluationJob(self.home, request).run(on_progress)

    def export(
        self,
        folder: str | Path,
        kind: str = "adapter",
        *,
        on_progress: Callable[[JobProgress], None] = _ignore,
        **settings: Any,
    ) -> ExportResult:
        """Write the result into a new folder, and verify it.

        Args:
            kind: `adapter`, `merged`, `gguf` or `compressed`.
            settings: More of `ExportConfig`.

        Raises:
            EngineError: As `ExportJob.run` does.
        """
        config = section_from_mapping(ExportConfig, settings | {"kind": kind})
        target = ChatTarget.of_run(self.folder)
        request = ExportRequest(target=target, folder=named_path(folder), settings=config)
        result = ExportJob(self.home, request).run(on_progress)
        save_record(target, config.kind, result)
        return result


class Chat:
    """A model in memory, in a process of its own, until `close`."""

    def __init__(
        self,
        home: LoratoryHome,
        store: RunStore,
        target: str,
        checkpoint: str | None,
        on_progress: Callable[[JobProgress], None],
    ) -> None:
        self._session = ChatSession(home)
        self.branches: tuple[Branch, ...] = self._session.load(
            choose_target(target, store, checkpoint, None), on_progress
        ).branches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stream(self, prompt: str | Sequence[Message], branch: Branch | None = None, **sampling: Any) -> Iterator[str]:
        """Yield an answer as it is written.

        Args:
            prompt: A question, or a conversation, as messages.
            branch: `base` or `tuned`; by None, what is tuned where anything is.
            sampling: Settings of `SamplingConfig`, such as `temperature`.

        Raises:
            EngineError: As `ChatSession.stream` does.
        """
        messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
        chosen = branch or ("tuned" if "tuned" in self.branches else "base")
        settings = section_from_mapping(SamplingConfig, sampling)
        for chunk in self._session.stream(ChatRequest(messages=messages, branches=(chosen,), sampling=settings)):
            yield chunk.text

    def answer(self, prompt: str | Sequence[Message], branch: Branch | None = None, **sampling: Any) -> str:
        """Return the whole answer; arguments and errors as in `stream`."""
        return "".join(self.stream(prompt, branch, **sampling))

    @property
    def is_loaded(self) -> bool:
        """Whether the model is still in memory: one that was not used for long may be unloaded."""
        return self._session.state.model is not None

    def close(self) -> None:
        """Free the memory."""
        self._session.unload()


def _of_own(method: Callable[Concatenate[Workspace, Parameters], Result]) -> Callable[Parameters, Result]:
    """Return a method as a function for the person at the keyboard, which ends its processes."""

    @functools.wraps(method)
    def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        with Workspace.own() as workspace:
            return method(workspace, *arguments, **options)

    signature = inspect_module.signature(method)
    call.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])  # type: ignore[attr-defined]
    return call


chat, estimate, inspect = _of_own(Workspace.chat), _of_own(Workspace.estimate), _of_own(Workspace.inspect)
render, run, runs, train = (
    _of_own(Workspace.render),
    _of_own(Workspace.run),
    _of_own(Workspace.runs),
    _of_own(Workspace.train),
)
