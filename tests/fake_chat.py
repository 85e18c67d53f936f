"""A conversation partner that needs no model and answers at a human pace."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from loratory.engine.chat.contract import (
    Branch,
    ChatChunk,
    ChatRequest,
    ChatState,
    ChatTarget,
    JobProgress,
    LoadedModel,
    PromptView,
)
from loratory.engine.data.conversation import Message
from loratory.engine.errors import ModelError, RunError

_ANSWERS: dict[Branch, str] = {
    "base": "Alpha is the first letter of the Greek alphabet.\nIt is <i>often</i> used in mathematics.",
    "tuned": "It scales the adapter's update: the product of the two matrices times lora_alpha / r.",
    "second": "lora_alpha is a scale: the update is multiplied by it and divided by the rank.",
}


class FakeChatSession:
    """Answers with prepared words, one at a time.

    Args:
        seconds_per_token: The pace.
    """

    def __init__(self, seconds_per_token: float = 0.02) -> None:
        self._pace = seconds_per_token
        self._state = ChatState(phase="empty")
        self._stopped: set[str] = set()
        self.may_answer = threading.Event()  # while it is not set, an answer continues only once it is stopped
        self.may_answer.set()
        self.most_words = sys.maxsize  # after so many, too
        self.requests: list[ChatRequest] = []
        self.takes_images = False  # of what is loaded next

    @property
    def state(self) -> ChatState:
        return self._state

    def load(self, target: ChatTarget, on_progress: Callable[[JobProgress], None] | None = None) -> LoadedModel:
        if self._state.target == target and self._state.model is not None:  # it is loaded
            return self._state.model
        model_id = target.model.id if target.model is not None else "smollm2-135m-instruct"
        if "nowhere" in model_id:
            error = ModelError(f"The model {model_id} cannot be reached.", "Check its name and your connection.")
            if on_progress is not None:
                self._state = ChatState(phase="loading", target=target)
                on_progress(JobProgress(phase="starting", message="Starting a process for the model."))
            self._state = self._state.model_copy(update={"phase": "empty", "failure": error})
            raise error
        for number, message in enumerate(
            ("Starting a process for the model.", "Loading the model.", "Loading the adapter.")
        ):
            progress = JobProgress(phase="loading_model", message=message, fraction=number / 3)
            self._state = ChatState(phase="loading", target=target, progress=progress)
            if on_progress is not None:
                on_progress(progress)
            time.sleep(self._pace * 5)
        branches: tuple[Branch, ...] = ("base",)
        if target.tuned is not None:
            branches += ("tuned",)
        if target.second is not None:
            branches += ("second",)
        model = LoadedModel(
            name=model_id,
            method="" if target.tuned is None else "LoRA",
            branches=branches,
            device="CPU",
            dtype="bfloat16",
            quantization=target.quantization or "none",
            weights_bytes=288_000_000,
            adapter_bytes=0 if target.tuned is None else 19_500_000,
            context_length=8192,
            takes_images=self.takes_images,
        )
        self._state = ChatState(phase="ready", target=target, model=model, process_bytes=700_000_000)
        return model

    def stream(self, request: ChatRequest) -> Iterator[ChatChunk]:
        if self._state.model is None:
            raise RunError("No model is loaded.", "Load a run, an adapter or a model first.")
        self.requests.append(request)
        answer_words = {branch: _ANSWERS[branch].split(" ") for branch in request.branches}
        for position in range(max(len(answer_words[branch]) for branch in request.branches) + 1):
            time.sleep(self._pace)
            while request.id not in self._stopped and not (position < self.most_words and self.may_answer.is_set()):
                time.sleep(0.01)
            stopped = request.id in self._stopped
            for branch in request.branches:
                text = answer_words[branch]
                if position > len(text):
                    continue
                done = stopped or position == len(text)
                yield ChatChunk(
                    branch=branch,
                    text="" if done else text[position] + " ",
                    tokens=position + (not done),
                    tokens_per_second=1 / self._pace if self._pace else 999.0,
                    prompt_tokens=31,
                    done=done,
                    finish_reason=None if not done else ("stopped" if stopped else "eos"),
                )
            if stopped:
                return

    def stop(self, request_id: str | None = None) -> None:
        self._stopped.add(request_id or "")

    def prompt(self, messages: Sequence[Message], tools: Sequence[object] = ()) -> PromptView:
        text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"
        return PromptView(text=text, ids=tuple(range(1, 1 + len(text.split()))))

    def unload(self) -> None:
        self._state = ChatState(phase="empty")
