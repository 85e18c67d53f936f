"""One conversation partner for this server: loads a model in a process of its own and streams its answers."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from engine.accounts.limits import idle_limit
from engine.chat import zero_gpu
from engine.chat.contract import (
    ChatChunk,
    ChatRequest,
    ChatState,
    ChatTarget,
    LoadedModel,
    OnProgress,
    Progress,
    PromptView,
    WorkPlace,
)
from engine.chat.target import LoadPlan, LoadRequest, plan_load
from engine.chat.zero_gpu import ZeroGpu
from engine.config.run import ModelConfig, RunSection
from engine.data.conversation import Message
from engine.data.hub import hub_access
from engine.errors import EngineError, GpuQuotaError, RunError, WorkerError
from engine.executors.work import machine_of
from engine.hardware.device import Device
from engine.hardware.device_job import DeviceJob
from engine.hardware.devices import choose_device
from engine.hardware.lease import UNTIL_A_CHAT_LEAVES_SECONDS, LeaseBook, LeaseHolder, Wait
from engine.paths import LoratoryHome
from engine.processes.json_lines import JsonLinesProcess
from engine.processes.liveness import ProcessIdentity
from engine.processes.messages import CancelledRequestError, JsonObject

WORKER_MODULE = "engine.chat.worker.main"

_LEAVING_SECONDS = 3.0  # a run that has just ended still holds its device until its process is gone
_LOOK_SECONDS = 1.0
_WITHOUT_QUOTA_SECONDS = 1800.0


@dataclass(frozen=True)
class _Loaded:
    target: ChatTarget
    plan: LoadPlan
    device: Device
    process: JsonLinesProcess
    model: LoadedModel
    is_here: bool = True  # on this machine

    @property
    def is_alive(self) -> bool:
        return self.process.pid is not None

    @property
    def base(self) -> tuple[ModelConfig, WorkPlace]:
        """Which weights are in memory, and where; adapters are exchanged beneath them."""
        return self.plan.model, self.target.where


@dataclass
class _Loading:
    target: ChatTarget
    plan: LoadPlan
    progress: Progress
    kept: _Loaded | None = None  # whose process continues with other adapters; kept where they do not fit
    process: JsonLinesProcess | None = None
    stopped: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class ChatSession:
    """Talks to one loaded model; any number of threads may ask at once, and each gets its turn at every token.

    A loaded model holds its device. When a run waits for that device, the model is unloaded once it has been idle.
    """

    home: LoratoryHome  # keeps the leases; its owner is whose the model is
    choose: Callable[[RunSection], Device] = choose_device
    gives_way_after_seconds: float = 60.0  # how long it is idle before a waiting run gets the device
    expires_after_seconds: float | None = None  # how long it may be idle although no run waits; None: the lab's limit
    waits_seconds: float | None = None  # for a device in use, asking its holder to make room; None: as the home is
    zero_gpu: ZeroGpu | None = None  # lends a GPU for each answer, in place of a device that is chosen
    on_unload: Callable[[str], None] = lambda _: None  # gets in words why it was unloaded, where that was not asked for

    def __post_init__(self) -> None:
        self._leases = LeaseBook(self.home)
        self._idle_limit = idle_limit(self.home)
        # Guards everything below; held for moments only, never while the process works.
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._loading: _Loading | None = None
        self._under_way: dict[str, int] = {}  # request id → number in the process
        self._idle_since = time.monotonic()
        self._lends_again = 0.0  # until then, ZeroGPU is not asked again
        self._note = ""
        self._failure: EngineError | None = None

    @property
    def state(self) -> ChatState:
        """What is loaded and what happens now; cheap enough to poll."""
        with self._lock:
            loaded, loading, generating = self._loaded, self._loading, len(self._under_way)
            note, failure = self._note, self._failure
        if loading is not None:
            return ChatState(phase="loading", target=loading.target, progress=loading.progress)
        pid = loaded.process.pid if loaded is not None else None
        if loaded is None or pid is None:
            return ChatState(phase="empty", note=note, failure=failure)
        process_bytes = None
        with contextlib.suppress(psutil.Error):
            process_bytes = int(psutil.Process(pid).memory_info().rss) if loaded.is_here else None
        return ChatState(
            phase="generating" if generating else "ready",
            target=loaded.target,
            model=loaded.model,
            generating=generating,
            process_bytes=process_bytes,
            expires_after_seconds=self._expires_after(),
            failure=failure,
        )

    def load(self, target: ChatTarget, on_progress: OnProgress = lambda _: None) -> LoadedModel:
        """Load what `target` names, and return once it can answer; what is loaded already is not loaded again.

        Adapters are exchanged beneath a base that stays in memory; for another base the process ends, which frees its
        device. Answers under way end with an error then. When new adapters cannot be loaded, the former ones stay.

        Raises:
            RunError: If a run has no adapter yet, a checkpoint does not exist, or something is being loaded already.
            ModelError: If the base or the adapter cannot be loaded, or the two do not belong together.
            DeviceError: If the device is missing, or its memory too small.
            WorkerError: If the process ended, as when `unload` is called meanwhile.
        """
        plan, machine = plan_load(target, self.home), machine_of(self.home, target)
        starts = machine.words if machine is not None else "Starting a process for the model."
        loading = _Loading(target, plan, Progress(phase="starting", message=starts))
        with self._lock:
            former = self._loaded
            has_base = former is not None and former.is_alive and former.base == (plan.model, target.where)
            if former is not None and has_base and (former.target, former.plan) == (target, plan):
                self._failure = None
                return former.model
            if self._loading is not None:
                raise RunError("A model is being loaded already.", "Wait until it is there, or unload it first.")
            if former is not None and has_base:
                loading.kept, loading.process = former, former.process
            self._loading, self._loaded, self._note, self._failure = loading, None, "", None
        kept = loading.kept
        try:
            if former is not None and kept is None:
                former.process.close()
            zero = self.zero_gpu if machine is None and time.monotonic() >= self._lends_again else None
            lent = zero.device if zero is not None else machine.device if machine is not None else None
            device = kept.device if kept is not None else lent or self.choose(RunSection())
            title, access = Path(plan.model.id).name, hub_access(plan.model)
            job = DeviceJob(
                self.home, WORKER_MODULE if zero is None else zero_gpu.WORKER_MODULE, "chat", title, device,
                access=access, preemptible=True, environment=zero.variables if zero is not None else {},
                model=plan.model.id, machine=machine,
            )  # fmt: skip
            process = kept.process if kept is not None else job.new_process()
            model = self._load_in(process, job, loading, on_progress)
        except BaseException as error:
            with self._lock:
                if self._loading is loading:
                    self._failure = error if isinstance(error, EngineError) else None
                    self._loading, self._idle_since = None, time.monotonic()
                    self._loaded = kept if kept is not None and kept.is_alive else None
            if kept is None and loading.process is not None:
                loading.process.close()
            raise
        with self._lock:
            if self._loading is not loading:
                raise _loading_ended()
            loaded = self._loaded = _Loaded(target, plan, device, process, model, is_here=machine is None)
            self._loading, self._idle_since = None, time.monotonic()
        threading.Thread(target=self._unload_when_idle, args=(loaded,), daemon=True).start()
        return model

    def keep(self) -> bool:
        """Count the loaded model as used now, so it stays for what is asked next; returns whether there is one."""
        with self._lock:
            if self._loading is not None or self._loaded is None or not self._loaded.is_alive:
                return False
            self._idle_since = time.monotonic()
            return True

    def stream(self, request: ChatRequest) -> Iterator[ChatChunk]:
        """Yield the answer as it is written; the branches of one request take turns at every token.

        Closing the iterator early stops the generation.

        Raises:
            RunError: If no model is loaded, it has no such branch, or it is exchanged or unloaded meanwhile.
            ModelError: If the conversation does not fit the context or the chat template.
            DeviceError: If memory runs out.
        """
        loaded = self._ready()
        missing = [branch for branch in request.branches if branch not in loaded.model.branches]
        if missing:
            raise RunError(
                f"{loaded.model.name} is loaded without a {missing[0]} branch; it has "
                f"{', '.join(loaded.model.branches)}.",
                "Ask one of these, or load a run.",
            )
        number = loaded.process.reserve_id()
        with self._lock:
            if request.id in self._under_way:
                what = "A request with this id is being answered already."
                raise RunError(what, "Give each request an id of its own.")
            self._under_way[request.id] = number
        try:
            for answer in loaded.process.stream("generate", request.model_dump(mode="json"), request_id=number):
                if "progress" in answer:
                    yield ChatChunk.model_validate(answer["progress"])
        except GpuQuotaError:
            self._use_processor(loaded)
            raise
        except WorkerError as error:
            if self._loaded is not loaded:
                raise RunError("The model was unloaded while it answered.", "Load it again and repeat.") from error
            raise
        finally:
            with self._lock:
                self._under_way.pop(request.id, None)
                self._idle_since = time.monotonic()

    def stop(self, request_id: str | None = None) -> None:
        """End an answer within one token; it then finishes with the reason `stopped`. Without an id, ends all answers."""
        with self._lock:
            loaded = self._loaded
            numbers = [number for key, number in self._under_way.items() if request_id in (None, key)]
        if loaded is not None:
            for number in numbers:
                loaded.process.cancel(number)

    def prompt(self, messages: Sequence[Message]) -> PromptView:
        """Show exactly what the loaded model would read for this conversation.

        Raises:
            RunError: If no model is loaded.
            ModelError: If the chat template refuses the conversation.
        """
        process = self._ready().process
        request = ChatRequest(messages=tuple(messages))
        return PromptView.model_validate(process.call("prompt", request.model_dump(mode="json")))

    def unload(self) -> None:
        """End the process, and so free the device; answers under way end with an error. Also ends a loading."""
        with self._lock:
            loaded, loading = self._loaded, self._loading
            self._loaded = self._loading = self._failure = None
        if loaded is not None:
            loaded.process.close(timeout_seconds=1.0)
        if loading is not None:
            loading.stopped.set()
            if loading.process is not None:
                loading.process.close(timeout_seconds=1.0)

    def _use_processor(self, loaded: _Loaded) -> None:
        """Unload a model that no GPU is lent to, so it is loaded on the processor next."""
        with self._lock:
            if self._loaded is not loaded:
                return
            self._loaded, self._lends_again = None, time.monotonic() + _WITHOUT_QUOTA_SECONDS
            self._note = (
                f"{loaded.model.name} was unloaded, because no GPU is lent to it. Load it again to chat on the CPU."
            )
        loaded.process.close(timeout_seconds=1.0)

    def _ready(self) -> _Loaded:
        with self._lock:
            loaded = self._loaded
        if loaded is None or not loaded.is_alive:
            raise RunError("No model is loaded.", "Load a run, an adapter or a model first.")
        return loaded

    def _load_in(
        self, process: JsonLinesProcess, job: DeviceJob, loading: _Loading, on_progress: OnProgress
    ) -> LoadedModel:
        def note(value: JsonObject) -> None:
            loading.progress = Progress.model_validate(value)
            on_progress(loading.progress)

        def on_wait(present: LeaseHolder) -> None:
            loading.progress = Progress(phase="starting", message=present.why_wait)
            on_progress(loading.progress)

        with self._lock:
            if self._loading is not loading:
                raise _loading_ended()
            loading.process = process
        on_progress(loading.progress)
        try:
            # In a lab, an idle chat of another person makes room.
            seconds = self.waits_seconds
            if seconds is None:
                seconds = UNTIL_A_CHAT_LEAVES_SECONDS if self.home.owner else _LEAVING_SECONDS
            job.start(process, Wait(seconds, on_wait, loading.stopped))
            request = LoadRequest(plan=loading.plan, device=job.device)
            return LoadedModel.model_validate(process.call("load", request.model_dump(mode="json"), on_progress=note))
        except CancelledRequestError as error:
            raise _loading_ended() from error
        except WorkerError as error:
            if self._loading is not loading:
                raise _loading_ended() from error
            raise

    def _unload_when_idle(self, loaded: _Loaded) -> None:
        """Unload an idle model when a run waits for its device, or when it expires; ends with the model or its successor."""
        identity = ProcessIdentity.of(loaded.process.pid or 0)
        while identity is not None and loaded.is_alive:
            with self._lock:
                kept = self._loading.kept if self._loading is not None else None
                if self._loaded is not loaded and kept is not loaded:
                    return
                unused = self._loaded is loaded and not self._under_way
                idle_since = self._idle_since
            idle_seconds = time.monotonic() - idle_since if unused else 0.0
            expires = self._expires_after()
            why = ""
            if unused and idle_seconds >= self.gives_way_after_seconds and self._leases.is_asked_to_give_way(identity):
                why = "because a run waited for its device"
            elif unused and expires is not None and idle_seconds >= expires:
                why = f"because it was idle for {expires / 60:.0f} min"
            if why:
                with self._lock:
                    if self._loaded is not loaded or self._under_way or self._idle_since != idle_since:
                        continue
                    self._loaded = None
                    self._note = f"{loaded.model.name} was unloaded, {why}."
                loaded.process.close(timeout_seconds=1.0)
                self.on_unload(self._note)
                return
            time.sleep(_LOOK_SECONDS)

    def _expires_after(self) -> float | None:
        return self.expires_after_seconds or self._idle_limit()


def _loading_ended() -> WorkerError:
    return WorkerError("Loading was ended before the model was there.", "Load it again when you need it.")
