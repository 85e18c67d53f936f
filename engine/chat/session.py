"""The chat session of a server: loads a model in a separate process and streams its answers."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from loratory.engine.accounts.lab import RulesReader
from loratory.engine.chat import contract, zero_gpu
from loratory.engine.chat.target import LoadPlan, LoadRequest, plan_load
from loratory.engine.chat.zero_gpu import ZeroGpu
from loratory.engine.config.run import RunSection
from loratory.engine.data.conversation import Message
from loratory.engine.data.hub import hub_access
from loratory.engine.errors import EngineError, GpuQuotaError, RunError, WorkerError
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import DeviceJob, OtherMachine
from loratory.engine.hardware.devices import choose_device
from loratory.engine.hardware.lease import UNTIL_A_CHAT_LEAVES_SECONDS, LeaseBook, LeaseHolder, Wait
from loratory.engine.paths import LoratoryHome
from loratory.engine.places import machine_of
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.processes.messages import CancelledRequestError, JsonObject

WORKER_MODULE = "loratory.engine.chat.worker.main"

_LEAVING_SECONDS = 3.0  # a run that has just ended holds its device until its process exits
_POLL_SECONDS = 1.0
_WITHOUT_QUOTA_SECONDS = 1800.0
_MOST_EARLY_STOPS = 100


@dataclass(frozen=True)
class _ActiveModel:
    target: contract.ChatTarget
    plan: LoadPlan
    device: Device
    process: JsonLinesProcess
    model: contract.LoadedModel
    is_here: bool = True  # on this machine

    @property
    def is_alive(self) -> bool:
        return self.process.pid is not None

    def has(self, target: contract.ChatTarget, plan: LoadPlan) -> bool:
        """Return whether exactly this is loaded."""
        return self.is_alive and (self.target, self.plan) == (target, plan)

    def has_base_of(self, target: contract.ChatTarget, plan: LoadPlan) -> bool:
        """Return whether the base of a plan is in memory, so only adapters have to be loaded."""
        return self.is_alive and (self.plan.model, self.target.where) == (plan.model, target.where)


@dataclass
class _Loading:
    target: contract.ChatTarget
    plan: LoadPlan
    progress: contract.JobProgress
    process: JsonLinesProcess | None = None  # one that has the base gets the new adapters
    stop_event: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class ChatSession:
    """Chat with one loaded model. Threads may send requests concurrently; requests take turns at every token.

    The model holds its device. When a run waits for that device, the model is unloaded once it has been idle.
    """

    home: LoratoryHome  # has the leases; the model belongs to its owner
    choose: Callable[[RunSection], Device] = choose_device
    preemptible_after_seconds: float = 60.0  # idle time after which a waiting run gets the device
    expires_after_seconds: float | None = None  # idle time after which it is unloaded anyway; None: the lab's limit
    waits_seconds: float | None = None  # to wait for a device in use; None: the default of the home
    zero_gpu: ZeroGpu | None = None  # lends a GPU for each answer; used instead of `choose`
    media: Path | None = None  # the folder of the images of conversations; None: the home's media store
    on_unload: Callable[[str], None] = lambda _: None  # gets the reason for an automatic unload

    def __post_init__(self) -> None:
        self._leases = LeaseBook(self.home)
        self._idle_limit = RulesReader(self.home).idle_seconds
        # Guards everything below; held for moments only, never while the process works.
        self._lock = threading.Lock()
        self._active: _ActiveModel | None = None
        self._loading: _Loading | None = None
        self._under_way: dict[str, int] = {}  # request id → number in the process
        self._early_stops: deque[str] = deque(maxlen=_MOST_EARLY_STOPS)  # ids that were stopped while not under way
        self._idle_since = time.monotonic()
        self._lends_again = 0.0  # ZeroGPU is not used before this time
        self._note = ""
        self._failure: EngineError | None = None

    @property
    def state(self) -> contract.ChatState:
        """The current state; cheap to poll."""
        with self._lock:
            active, loading, generating = self._active, self._loading, len(self._under_way)
            note, failure = self._note, self._failure
        if loading is not None:
            return contract.ChatState(phase="loading", target=loading.target, progress=loading.progress)
        pid = active.process.pid if active is not None else None
        if active is None or pid is None:
            return contract.ChatState(phase="empty", note=note, failure=failure)
        process_bytes = None
        with contextlib.suppress(psutil.Error):
            process_bytes = int(psutil.Process(pid).memory_info().rss) if active.is_here else None
        return contract.ChatState(
            phase="generating" if generating else "ready",
            target=active.target,
            model=active.model,
            generating=generating,
            process_bytes=process_bytes,
            expires_after_seconds=self._expires_after(),
            failure=failure,
        )

    def load(
        self, target: contract.ChatTarget, on_progress: contract.OnProgress = lambda _: None
    ) -> contract.LoadedModel:
        """Load a target and return once it can answer; return at once if it is loaded already.

        If only the adapters differ, the base model stays in memory. For another base the process ends, which frees its
        device and ends running answers with an error. What cannot be loaded leaves nothing loaded.

        Raises:
            RunError: If a run has no adapter yet, a checkpoint does not exist, or another load is in progress.
            ModelError: If the base or the adapter cannot be loaded, or the two do not belong together.
            DeviceError: If the device is missing, or its memory too small.
            WorkerError: If the process ended, for example because of `unload`.
        """
        plan, machine = plan_load(target, self.home), machine_of(self.home, target.where, target.trained_folder)
        starts = machine.wait_message if machine is not None else "Starting a process for the model."
        with self._lock:
            previous = self._active
            if previous is not None and previous.has(target, plan):
                self._failure = None
                return previous.model
            if self._loading is not None:
                raise RunError("A model is already being loaded.", "Wait until it is loaded, or unload it first.")
            reuse = previous if previous is not None and previous.has_base_of(target, plan) else None
            loading = _Loading(target, plan, contract.JobProgress(phase="starting", message=starts))
            loading.process = reuse.process if reuse is not None else None
            self._loading, self._active, self._note, self._failure = loading, None, "", None
        try:
            if previous is not None and reuse is None:
                previous.process.close()
            job = self._device_job(plan, machine, reuse)
            process = reuse.process if reuse is not None else job.new_process()
            model = self._load_in(process, job, loading, on_progress)
        except BaseException as error:
            self._abandon(loading, error)
            raise
        active = _ActiveModel(target, plan, job.device, process, model, is_here=machine is None)
        with self._lock:
            if self._loading is not loading:
                raise _loading_ended()
            self._active, self._loading, self._idle_since = active, None, time.monotonic()
        threading.Thread(target=self._unload_when_idle, args=(active,), daemon=True).start()
        return model

    def _device_job(self, plan: LoadPlan, machine: OtherMachine | None, reuse: _ActiveModel | None) -> DeviceJob:
        """Return the job of the model's process: with the device in use, of another machine, of ZeroGPU, or here."""
        zero = self.zero_gpu if machine is None and time.monotonic() >= self._lends_again else None
        owner = reuse or machine or zero
        device = owner.device if owner is not None else self.choose(RunSection())
        title, access = Path(plan.model.id).name, hub_access(plan.model)
        return DeviceJob(
            self.home, WORKER_MODULE if zero is None else zero_gpu.WORKER_MODULE, "chat", title, device,
            access=access, preemptible=True, environment=zero.variables if zero is not None else {},
            model=plan.model.id, machine=machine,
        )  # fmt: skip

    def _abandon(self, loading: _Loading, error: BaseException) -> None:
        with self._lock:
            if self._loading is loading:
                self._failure = error if isinstance(error, EngineError) else None
                self._loading = None
        if loading.process is not None:
            loading.process.close()

    def touch(self) -> bool:
        """Restart the idle timer of the loaded model; return whether there is one."""
        with self._lock:
            if self._loading is not None or self._active is None or not self._active.is_alive:
                return False
            self._idle_since = time.monotonic()
            return True

    def stream(self, request: contract.ChatRequest) -> Iterator[contract.ChatChunk]:
        """Yield the answer as it is generated; the branches of a request take turns at every token.

        Closing the iterator early stops the generation.

        Raises:
            RunError: If no model is loaded, it has no such branch, or it is replaced or unloaded during the answer.
            ModelError: If the conversation does not fit the context or the chat template.
            DeviceError: If memory runs out.
        """
        active = self._ready()
        missing = [branch for branch in request.branches if branch not in active.model.branches]
        if missing:
            raise RunError(
                f"{active.model.name} is loaded without a {missing[0]} branch; it has "
                f"{', '.join(active.model.branches)}.",
                "Use one of these, or load a run.",
            )
        number = active.process.reserve_id()
        with self._lock:
            if request.id in self._under_way:
                what = "A request with this id is already running."
                raise RunError(what, "Use a unique id for each request.")
            self._under_way[request.id] = number
            is_stopped = request.id in self._early_stops
        if is_stopped:
            active.process.cancel(number)
        try:
            for answer in active.process.stream("generate", request.model_dump(mode="json"), request_id=number):
                if "progress" in answer:
                    yield contract.ChatChunk.model_validate(answer["progress"])
        except GpuQuotaError:
            self._lends_again = time.monotonic() + _WITHOUT_QUOTA_SECONDS
            self._release(active, "because no GPU is lent to it. Load it again to chat on the CPU")
            raise
        except WorkerError as error:
            if self._active is not active:
                raise RunError("The model was unloaded while it answered.", "Load it again and repeat.") from error
            raise
        finally:
            with self._lock:
                self._under_way.pop(request.id, None)
                self._idle_since = time.monotonic()

    def stop(self, request_id: str | None = None) -> None:
        """End an answer within one token; it then finishes with the reason `stopped`. Without an id, ends all answers.

        A request that has not begun yet is stopped once it does.
        """
        with self._lock:
            active = self._active
            numbers = [number for key, number in self._under_way.items() if request_id in (None, key)]
            if request_id is not None and not numbers:
                self._early_stops.append(request_id)
        if active is not None:
            for number in numbers:
                active.process.cancel(number)

    def prompt(self, messages: Sequence[Message]) -> contract.PromptView:
        """Return the prompt that the loaded model gets for this conversation.

        Raises:
            RunError: If no model is loaded.
            ModelError: If the chat template refuses the conversation.
        """
        process = self._ready().process
        request = contract.ChatRequest(messages=tuple(messages))
        return contract.PromptView.model_validate(process.call("prompt", request.model_dump(mode="json")))

    def unload(self) -> None:
        """End the process, which frees the device; running answers and loads end with an error."""
        with self._lock:
            active, loading = self._active, self._loading
            self._active = self._loading = self._failure = None
        if active is not None:
            active.process.close(timeout_seconds=1.0)
        if loading is not None:
            loading.stop_event.set()
            if loading.process is not None:
                loading.process.close(timeout_seconds=1.0)

    def _release(self, active: _ActiveModel, reason: str, unused_since: float | None = None) -> bool:
        """Unload a model, unless it was replaced, or used after a time; return whether it was unloaded."""
        with self._lock:
            is_used = unused_since is not None and (bool(self._under_way) or self._idle_since != unused_since)
            if self._active is not active or is_used:
                return False
            self._active, self._note = None, f"{active.model.name} was unloaded, {reason}."
        active.process.close(timeout_seconds=1.0)
        return True

    def _ready(self) -> _ActiveModel:
        with self._lock:
            active = self._active
        if active is None or not active.is_alive:
            raise RunError("No model is loaded.", "Load a run, an adapter or a model first.")
        return active

    def _load_in(
        self, process: JsonLinesProcess, job: DeviceJob, loading: _Loading, on_progress: contract.OnProgress
    ) -> contract.LoadedModel:
        def note(value: JsonObject) -> None:
            loading.progress = contract.JobProgress.model_validate(value)
            on_progress(loading.progress)

        def on_wait(present: LeaseHolder) -> None:
            loading.progress = contract.JobProgress(phase="starting", message=present.why_wait)
            on_progress(loading.progress)

        with self._lock:
            if self._loading is not loading:
                raise _loading_ended()
            loading.process = process
        on_progress(loading.progress)
        try:
            # In a lab, another person's idle chat gives up its device.
            seconds = self.waits_seconds
            if seconds is None:
                seconds = UNTIL_A_CHAT_LEAVES_SECONDS if self.home.owner else _LEAVING_SECONDS
            job.start(process, Wait(seconds, on_wait, loading.stop_event))
            request = LoadRequest(plan=loading.plan, device=job.device, media=self.media or self.home.media)
            return contract.LoadedModel.model_validate(
                process.call("load", request.model_dump(mode="json"), on_progress=note)
            )
        except CancelledRequestError as error:
            raise _loading_ended() from error
        except WorkerError as error:
            if self._loading is not loading:
                raise _loading_ended() from error
            raise

    def _unload_when_idle(self, active: _ActiveModel) -> None:
        """Unload the model when it is idle and a run waits for its device, or when it expires; ends with the model."""
        identity = ProcessIdentity.from_pid(active.process.pid or 0)
        while identity is not None and active.is_alive and self._active is active:
            expires = self._expires_after()
            with self._lock:
                idle_since = None if self._under_way else self._idle_since
            if idle_since is not None:
                idle_seconds, reason = time.monotonic() - idle_since, ""
                is_preemptible = idle_seconds >= self.preemptible_after_seconds
                if is_preemptible and self._leases.is_preemption_requested(identity):
                    reason = "because a run waited for its device"
                elif expires is not None and idle_seconds >= expires:
                    reason = f"because it was idle for {expires / 60:.0f} min"
                if reason and self._release(active, reason, idle_since):
                    self.on_unload(self._note)
                    return
            time.sleep(_POLL_SECONDS)

    def _expires_after(self) -> float | None:
        return self.expires_after_seconds or self._idle_limit()


def _loading_ended() -> WorkerError:
    return WorkerError("Loading was stopped before the model was ready.", "Load it again when you need it.")
