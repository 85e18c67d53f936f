"""Chat on ZeroGPU: this process has the tokenizer, and one function to which Hugging Face lends a GPU for each answer.

`python -P -m engine.chat.worker.zero_gpu HOME` answers `ChatSession`; with `--report`, it only reports the function. The
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

from engine.chat.contract import ChatChunk, ChatRequest, LoadedModel, Progress
from engine.chat.target import LoadPlan, LoadRequest
from engine.chat.zero_gpu import REPORT, TOKEN_HEADER
from engine.errors import DeviceError, EngineError, GpuQuotaError, RunError
from engine.models.folder import check_model_folder, read_config
from engine.paths import LoratoryHome
from engine.processes.messages import JsonObject, Request, Steps, error_from_json, error_to_json, serve
from engine.processes.spawn import end_children_with_us
from engine.runs.warm_start import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from engine.chat.worker.answer import TalkingTokenizer
    from engine.chat.worker.main import ChatWorker
    from engine.chat.worker.weights import ModelPlace

# It shows torch a GPU before there is one, which needs a build with CUDA: without, it must not find torch.
_found = sys.modules["torch"]
if torch.version.cuda is None:
    sys.modules["torch"] = None  # type: ignore[assignment]
import spaces  # noqa: E402
import spaces.utils  # noqa: E402
import spaces.zero  # noqa: E402

sys.modules["torch"] = _found

_NOTE = (
    "Each answer borrows a GPU from Hugging Face. Its seconds count against your daily ZeroGPU quota where Hugging Face "
    "knows you, which is inside huggingface.co alone; at this address, against that of your network address."
)
_WAITING = "waiting for a GPU …"
_NOTHING_YET = ChatChunk(branch="base", text="", tokens=0, tokens_per_second=0.0, prompt_tokens=0)
_STOPPED = {"text": "", "done": True, "finish_reason": "stopped"}
_LOOK_SECONDS = 0.05
_QUIET_SECONDS = 1.0  # before the wait is shown
_LOADING_SECONDS = 30  # of a GPU that has not read the weights yet
_SECONDS_PER_TOKEN = 0.05
_LONGEST_SECONDS = 120  # what Hugging Face lends to people without a plan


class _Lent(Request):
    """What the handlers of `ChatWorker` send, while a GPU is lent."""

    def __init__(self) -> None:
        self.sent: list[JsonObject] = []

    def progress(self, value: JsonObject) -> None:
        self.sent.append(value)

    def is_cancelled(self) -> bool:
        return False  # the generator is closed instead

    def take(self) -> Iterator[JsonObject]:
        sent, self.sent = self.sent, []
        yield from sent


@functools.cache
def _chat() -> "ChatWorker":
    """Return what holds the weights in this process; each GPU has one of its own."""
    from engine.chat.worker.main import ChatWorker

    return ChatWorker(LoratoryHome(Path(sys.argv[1])))


def _seconds(plan: LoadPlan, _place: "ModelPlace", ask: ChatRequest) -> int:
    """How long an answer may take; a quota must have as much left, and is charged what was used."""
    models = len(ask.branches) if any(one.is_whole_model for one in plan.trained.values()) else 1
    tokens = len(ask.branches) * ask.sampling.max_new_tokens
    return round(min(_LOADING_SECONDS * models + tokens * _SECONDS_PER_TOKEN, _LONGEST_SECONDS))


@spaces.GPU(duration=_seconds)  # type: ignore[untyped-decorator]
def _answer(plan: LoadPlan, place: "ModelPlace", ask: ChatRequest) -> Iterator[JsonObject]:
    """Yield a first word once there is a GPU, then the chunks of the answers, or the error that ended them."""
    yield {}
    lent = _Lent()
    try:
        _chat().hold(plan, place, lambda _phase: lambda _message: None)
        for _ in _chat().generate(ask.model_dump(mode="json"), lent):
            yield from lent.take()
        yield from lent.take()
    except EngineError as error:
        yield {"error": error_to_json(error)}


class _Planned(NamedTuple):
    plan: LoadPlan
    place: "ModelPlace"
    tokenizer: "TalkingTokenizer"


@dataclass
class _Call:
    """One answer: a thread waits for the GPU, so other requests and a stop are heard meanwhile."""

    ask: ChatRequest
    planned: _Planned
    sent: "Queue[JsonObject | Exception | None]" = field(default_factory=Queue)  # None: the end
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        spaces.utils.gradio_request_var().set(_Visitor(self.ask.gpu_token))
        ask = self.ask.model_copy(update={"gpu_token": ""})
        try:
            with contextlib.closing(_answer(self.planned.plan, self.planned.place, ask)) as answer:
                for sent in answer:
                    if self.stopped.is_set():
                        break
                    self.sent.put(sent)
        except Exception as error:
            self.sent.put(error)
        self.sent.put(None)


class _Visitor:
    """The request of a page, as far as `spaces` reads it."""

    class Headers(dict[str, str]):
        """With a `__dict__`, which it looks for."""

    def __init__(self, token: str) -> None:
        self.headers = self.Headers({"x-gradio-user": "app", **({TOKEN_HEADER: token} if token else {})})


class ZeroGpuWorker:
    """Answers the questions of `ChatSession` on a GPU that is not there between them."""

    def __init__(self) -> None:
        self._planned: _Planned | None = None

    def load(self, params: JsonObject, request: Request) -> JsonObject:
        """Download and check what a plan names; weights are loaded with the first answer, and by each new GPU."""
        from engine.chat.worker.answer import load_chat_tokenizer
        from engine.chat.worker.weights import weights_bytes

        asked = LoadRequest.model_validate(params)
        plan = asked.plan
        place = _chat().find(asked, lambda progress: request.progress(progress.model_dump(mode="json")))
        check_model_folder(place.folder, place.name)
        folders = [trained.folder for trained in plan.trained.values()]
        planned = _Planned(plan, place, load_chat_tokenizer(folders, place.folder, place.name))
        adapters = sum(file.stat().st_size for folder in folders if (file := folder / ADAPTER_WEIGHTS).is_file())
        config = read_config(place.folder / "config.json", place.name)
        positions = config.get("max_position_embeddings")
        self._planned = planned
        ready = Progress(phase="ready", message=f"{place.name} is ready.", fraction=1.0)
        request.progress(ready.model_dump(mode="json"))
        return LoadedModel(
            name=place.name,
            method=plan.method_name,
            branches=("base", *plan.trained),
            device=place.device.name,
            dtype=str(place.dtype).removeprefix("torch."),
            quantization=plan.model.quantization,
            weights_bytes=weights_bytes(place, plan.model) + adapters,
            adapter_bytes=adapters,
            context_length=positions if isinstance(positions, int) else None,
            notes=(*plan.notes, _NOTE),
        ).model_dump(mode="json")

    def generate(self, params: JsonObject, request: Request) -> Steps:
        """Pass on what the borrowed GPU answers."""
        ask = ChatRequest.model_validate(params)
        call = _Call(ask, self._require_loaded())
        latest = {branch: _NOTHING_YET.model_copy(update={"branch": branch}) for branch in ask.branches}
        threading.Thread(target=call.run, name="zero-gpu", daemon=True).start()
        looks = 0
        while True:
            try:
                sent = call.sent.get(timeout=_LOOK_SECONDS)
            except Empty:
                sent, looks = {}, looks + 1
                if looks == round(_QUIET_SECONDS / _LOOK_SECONDS):
                    for chunk in latest.values():
                        request.progress(chunk.model_copy(update={"note": _WAITING}).model_dump(mode="json"))
            if isinstance(sent, Exception):
                raise _explained(sent) from sent
            if sent is None:
                return {}
            if "error" in sent:
                raise error_from_json(sent["error"])
            if sent:
                chunk = ChatChunk.model_validate(sent)
                latest[chunk.branch] = chunk
                request.progress(sent)
            if request.is_cancelled():
                call.stopped.set()
                for chunk in latest.values():
                    if not chunk.done:
                        request.progress(chunk.model_copy(update=_STOPPED).model_dump(mode="json"))
                return {}
            yield

    def prompt(self, params: JsonObject, _: Request) -> JsonObject:
        """Return what the model would read."""
        from engine.chat.worker.answer import render_prompt

        ask = ChatRequest.model_validate(params)
        return render_prompt(ask.messages, self._require_loaded().tokenizer).model_dump(mode="json")

    def _require_loaded(self) -> _Planned:
        if self._planned is None:
            raise RunError("No model is loaded.", "Load a run, an adapter or a model first.")
        return self._planned


# What `spaces` raises is Gradio's error, with these titles (zero/client.py and zero/wrappers.py).
_ON_CPU = "Load the model again to chat on the CPU; a GPU is asked for again after half an hour."
_REFUSALS = {
    "ZeroGPU quota exceeded": (
        "Your ZeroGPU quota at Hugging Face does not cover this answer",
        _ON_CPU,
    ),
    "ZeroGPU illegal duration": (
        "Hugging Face lends no GPU for so long",
        "Ask for fewer tokens or one model at a time.",
    ),
    "ZeroGPU pending credits exceeded": (
        "Your other tasks use all your ZeroGPU credits",
        "Try again when one has ended.",
    ),
    "ZeroGPU worker error": (
        "The GPU was taken back before the answer was complete",
        "Ask for fewer tokens, or try again.",
    ),
}
_NO_GPU = ("Hugging Face has no free GPU now", "Try again in a minute.")
# A request without a token of its visitor counts against the Space.
_OF_THE_SPACE = ("This Space has used up its ZeroGPU quota", _ON_CPU)
_AMOUNTS = re.compile(r"\d+s requested vs\. \d+s left|Try again in [\w ,:]{1,40}")


def _explained(error: Exception) -> EngineError:
    """Return why there was no GPU, in our words: those of `spaces` are partly HTML, and about other pages."""
    message, title = str(getattr(error, "message", "")), str(getattr(error, "title", ""))
    if not title.startswith("ZeroGPU"):
        traceback.print_exception(error)
        return DeviceError(
            f"ZeroGPU cannot be used ({type(error).__name__}).", "Try again; see chat.log if it repeats."
        )
    what, fix = _REFUSALS.get(title, _NO_GPU)
    if message.startswith("Space app"):
        what, fix = _OF_THE_SPACE
    elif message.startswith("No GPU was available"):  # without a token, such a wait is called an exceeded quota as well
        what, fix = _NO_GPU
    amounts = [found[0].lower() + found[1:] for found in _AMOUNTS.findall(message)]
    shown = f" ({', '.join(amounts)})" if amounts else ""
    return (GpuQuotaError if fix is _ON_CPU else DeviceError)(f"{what}{shown}.", fix)


if __name__ == "__main__":
    if sys.argv[1:] == [REPORT]:
        spaces.zero.startup()
    else:
        end_children_with_us()
        worker = ZeroGpuWorker()
        serve({"load": worker.load, "generate": worker.generate, "prompt": worker.prompt})
