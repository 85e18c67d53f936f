"""Chat on ZeroGPU: this process has the tokenizer, and a function that borrows a GPU from Hugging Face for each answer.

`python -P -m loratory.engine.chat.worker.zero_gpu HOME` serves `ChatSession`; with `--report`, it only registers the function. The
`spaces` library runs the function in a child of this process, which holds the weights until its GPU is lent elsewhere.
"""

import contextlib
import functools
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, NamedTuple

import torch

from loratory.engine.chat.contract import ChatChunk, ChatRequest, JobProgress, LoadedModel
from loratory.engine.chat.target import LoadPlan, LoadRequest
from loratory.engine.chat.zero_gpu import REPORT, TOKEN_HEADER
from loratory.engine.data.render.images import image_text_of
from loratory.engine.errors import DeviceError, EngineError, GpuQuotaError, RunError
from loratory.engine.models.folder import check_model_folder, read_config
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import JsonObject, Request, Steps, error_from_json, error_to_json, serve
from loratory.engine.processes.spawn import end_children_with_us
from loratory.engine.runs.provenance import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from loratory.engine.chat.worker.answer import DecodingTokenizer
    from loratory.engine.chat.worker.main import ChatWorker
    from loratory.engine.chat.worker.weights import ModelSpec

# `spaces` makes torch show a GPU before it is lent, which needs a build with CUDA. Hide torch from it otherwise.
_torch = sys.modules["torch"]
if torch.version.cuda is None:
    sys.modules["torch"] = None  # type: ignore[assignment]
import spaces  # noqa: E402
import spaces.utils  # noqa: E402
import spaces.zero  # noqa: E402

sys.modules["torch"] = _torch

_NOTE = (
    "Each answer borrows a GPU from Hugging Face. Its seconds count against your daily ZeroGPU quota if you are "
    "signed in and opened the Space on huggingface.co, and otherwise against the quota of your network address."
)
_WAITING = "waiting for a GPU …"
_NOTHING_YET = ChatChunk(branch="base", text="", tokens=0, tokens_per_second=0.0, prompt_tokens=0)
_STOPPED = {"text": "", "done": True, "finish_reason": "stopped"}
_POLL_SECONDS = 0.05
_QUIET_SECONDS = 1.0  # before the wait is shown
_LOADING_SECONDS = 30  # of a GPU that has not read the weights yet
_SECONDS_PER_TOKEN = 0.05
_LONGEST_SECONDS = 120  # what Hugging Face lends to people without a plan


class _GpuRequest(Request):
    """Collects what the handlers of `ChatWorker` send while a GPU is lent."""

    def __init__(self) -> None:
        self.messages: list[JsonObject] = []

    def progress(self, value: JsonObject) -> None:
        self.messages.append(value)

    def is_cancelled(self) -> bool:
        return False  # the generator is closed instead

    def take(self) -> Iterator[JsonObject]:
        messages, self.messages = self.messages, []
        yield from messages


@functools.cache
def _chat() -> "ChatWorker":
    """Return the worker that holds the weights in this process; each GPU has its own."""
    from loratory.engine.chat.worker.main import ChatWorker

    return ChatWorker(LoratoryHome(Path(sys.argv[1])))


def _seconds(plan: LoadPlan, _spec: "ModelSpec", chat_request: ChatRequest) -> int:
    """Return the longest time of an answer; the quota must have that much left, and is charged for what was used."""
    models = (
        len(chat_request.branches) if any(weights.is_whole_model for weights in plan.trained_weights.values()) else 1
    )
    tokens = len(chat_request.branches) * chat_request.sampling.max_new_tokens
    return round(min(_LOADING_SECONDS * models + tokens * _SECONDS_PER_TOKEN, _LONGEST_SECONDS))


@spaces.GPU(duration=_seconds)  # type: ignore[untyped-decorator]
def _answer(plan: LoadPlan, spec: "ModelSpec", chat_request: ChatRequest) -> Iterator[JsonObject]:
    """Yield an empty message once there is a GPU, then the chunks of the answers or an error."""
    yield {}
    gpu_request = _GpuRequest()
    try:
        _chat().hold(plan, spec, lambda _phase: lambda _message: None)
        for _ in _chat().generate(chat_request.model_dump(mode="json"), gpu_request):
            yield from gpu_request.take()
        yield from gpu_request.take()
    except EngineError as error:
        yield {"error": error_to_json(error)}


class _Model(NamedTuple):
    plan: LoadPlan
    spec: "ModelSpec"
    tokenizer: "DecodingTokenizer"


@dataclass
class _Call:
    """One answer. A thread waits for the GPU, so other requests and a stop are handled."""

    chat_request: ChatRequest
    model: _Model
    messages: "Queue[JsonObject | Exception | None]" = field(default_factory=Queue)  # None: the end
    stop_event: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        spaces.utils.gradio_request_var().set(_Visitor(self.chat_request.gpu_token))
        chat_request = self.chat_request.model_copy(update={"gpu_token": ""})
        try:
            with contextlib.closing(_answer(self.model.plan, self.model.spec, chat_request)) as answer:
                for message in answer:
                    if self.stop_event.is_set():
                        break
                    self.messages.put(message)
        except Exception as error:
            self.messages.put(error)
        self.messages.put(None)


class _Visitor:
    """The parts of a page's request that `spaces` reads."""

    class Headers(dict[str, str]):
        """With a `__dict__`, which `spaces` requires."""

    def __init__(self, token: str) -> None:
        self.headers = self.Headers({"x-gradio-user": "app", **({TOKEN_HEADER: token} if token else {})})


class ZeroGpuWorker:
    """Serves the requests of `ChatSession` on a GPU that is borrowed for each answer."""

    def __init__(self) -> None:
        self._model: _Model | None = None

    def load(self, params: JsonObject, request: Request) -> JsonObject:
        """Download and check a plan's model; each GPU loads the weights with its first answer."""
        from loratory.engine.chat.worker.answer import load_chat_tokenizer
        from loratory.engine.chat.worker.weights import weights_bytes

        load_request = LoadRequest.model_validate(params)
        plan = load_request.plan
        spec = _chat().find(load_request, lambda progress: request.progress(progress.model_dump(mode="json")))
        check_model_folder(spec.folder, spec.name)
        folders = [weights.folder for weights in plan.trained_weights.values()]
        model = _Model(plan, spec, load_chat_tokenizer(folders, spec.folder, spec.name, plan.vision))
        adapters = sum(file.stat().st_size for folder in folders if (file := folder / ADAPTER_WEIGHTS).is_file())
        config = read_config(spec.folder / "config.json", spec.name)
        positions = config.get("max_position_embeddings")
        self._model = model
        ready = JobProgress(phase="ready", message=f"{spec.name} is ready.", fraction=1.0)
        request.progress(ready.model_dump(mode="json"))
        return LoadedModel(
            name=spec.name,
            method=plan.method_name,
            branches=("base", *plan.trained_weights),
            device=spec.device.name,
            dtype=str(spec.dtype).removeprefix("torch."),
            quantization=plan.model.quantization,
            weights_bytes=weights_bytes(spec, plan.model) + adapters,
            adapter_bytes=adapters,
            context_length=positions if isinstance(positions, int) else None,
            takes_images=image_text_of(model.tokenizer) is not None,
            notes=(*_chat().notes(plan, spec), _NOTE),
        ).model_dump(mode="json")

    def generate(self, params: JsonObject, request: Request) -> Steps:
        """Forward the chunks from the borrowed GPU."""
        chat_request = ChatRequest.model_validate(params)
        call = _Call(chat_request, self._require_loaded())
        latest = {branch: _NOTHING_YET.model_copy(update={"branch": branch}) for branch in chat_request.branches}
        threading.Thread(target=call.run, name="zero-gpu", daemon=True).start()
        polls = 0
        while True:
            try:
                message = call.messages.get(timeout=_POLL_SECONDS)
            except Empty:
                message, polls = {}, polls + 1
                if polls == round(_QUIET_SECONDS / _POLL_SECONDS):
                    for chunk in latest.values():
                        request.progress(chunk.model_copy(update={"note": _WAITING}).model_dump(mode="json"))
            if isinstance(message, Exception):
                raise _gpu_error(message) from message
            if message is None:
                return {}
            if "error" in message:
                raise error_from_json(message["error"])
            if message:
                chunk = ChatChunk.model_validate(message)
                latest[chunk.branch] = chunk
                request.progress(message)
            if request.is_cancelled():
                call.stop_event.set()
                for chunk in latest.values():
                    if not chunk.done:
                        request.progress(chunk.model_copy(update=_STOPPED).model_dump(mode="json"))
                return {}
            yield

    def prompt(self, params: JsonObject, _: Request) -> JsonObject:
        """Return the prompt that the model would get."""
        from loratory.engine.chat.worker.answer import render_prompt

        chat_request = ChatRequest.model_validate(params)
        return render_prompt(chat_request.messages, self._require_loaded().tokenizer).model_dump(mode="json")

    def _require_loaded(self) -> _Model:
        if self._model is None:
            raise RunError("No model is loaded.", "Load a run, an adapter or a model first.")
        return self._model


_AMOUNTS = re.compile(r"\d+s requested vs\. \d+s left|Try again in [\w ,:]{1,40}")


def _gpu_error(error: Exception) -> EngineError:
    """Convert an error of `spaces`: Gradio's, whose messages are partly HTML and refer to other pages.

    Source: its titles and messages in zero/client.py and zero/wrappers.py.
    """
    message, title = str(getattr(error, "message", "")), str(getattr(error, "title", ""))
    if not title.startswith("ZeroGPU"):
        traceback.print_exception(error)
        return DeviceError(
            f"ZeroGPU cannot be used ({type(error).__name__}).", "Try again; see chat.log if it repeats."
        )
    # Without a token, a wait for a GPU is called an exceeded quota as well.
    if title != "ZeroGPU quota exceeded" or message.startswith("No GPU was available"):
        fix = "Try again in a minute, or request fewer tokens."
        return DeviceError(f"Hugging Face lends no GPU for this answer now ({title}).", fix)
    # A request without a token of its visitor counts against the Space.
    whose = "The ZeroGPU quota of this Space" if message.startswith("Space app") else "Your ZeroGPU quota"
    amounts = [match[0].lower() + match[1:] for match in _AMOUNTS.findall(message)]
    details = f" ({', '.join(amounts)})" if amounts else ""
    fix = "Load the model again to chat on the CPU; a GPU is requested again after half an hour."
    return GpuQuotaError(f"{whose} at Hugging Face does not cover this answer{details}.", fix)


if __name__ == "__main__":
    if sys.argv[1:] == [REPORT]:
        spaces.zero.startup()
    else:
        end_children_with_us()
        worker = ZeroGpuWorker()
        serve({"load": worker.load, "generate": worker.generate, "prompt": worker.prompt})
