"""The process that holds a model and answers: `python -P -m engine.chat.worker.main HOME`, JSON lines on stdio."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.chat.contract import Branch, ChatRequest, LoadedModel, Phase, Progress
from engine.chat.target import LoadPlan, LoadRequest
from engine.chat.worker.answer import TalkingTokenizer, begin_answer, context_length, load_chat_tokenizer, render_prompt
from engine.chat.worker.static_cache import LentCache
from engine.chat.worker.weights import Announce, BranchWeights, ModelPlace, Weights, choose_dtype, memory_errors
from engine.errors import RunError
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from engine.processes.messages import JsonObject, Request, Steps, serve
from engine.processes.spawn import Access, give_up_access

_WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class _Loaded:
    weights: Weights
    tokenizer: TalkingTokenizer


class ChatWorker:
    """Answers the questions of `ChatSession`."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home
        self._loaded: _Loaded | None = None

    def load(self, params: JsonObject, request: Request) -> JsonObject:
        """Load a plan; only its adapters where the base is in memory already."""
        asked = LoadRequest.model_validate(params)
        plan = asked.plan

        def report(progress: Progress) -> None:
            request.progress(progress.model_dump(mode="json"))

        def announce(phase: Phase) -> Announce:
            return lambda message: report(Progress(phase=phase, message=message))

        has_base = self._loaded is not None and self._loaded.weights.plan.model == plan.model
        place = self._loaded.weights.place if self._loaded is not None and has_base else self.find(asked, report)
        weights = self.hold(plan, place, announce)
        branches: tuple[Branch, ...] = (*plan.trained,) or ("base",)
        for branch in branches:
            _warm_up(weights.branch(branch), weights.place)
        report(Progress(phase="ready", message=f"{weights.place.name} is ready.", fraction=1.0))
        return LoadedModel(
            name=weights.place.name,
            method=plan.method_name,
            branches=weights.offered,
            device=weights.place.device.name,
            dtype=str(weights.place.dtype).removeprefix("torch."),
            quantization=plan.model.quantization,
            weights_bytes=weights.size_bytes,
            adapter_bytes=weights.adapter_bytes,
            context_length=context_length(next(weights.holders()).model),
            notes=plan.notes,
        ).model_dump(mode="json")

    def find(self, asked: LoadRequest, report: Callable[[Progress], None]) -> ModelPlace:
        """Download the base of a plan where it is not here yet, and give up the login with which that is done."""
        model = asked.plan.model
        source = resolve_model(model, asked.plan.home(self._home), lambda fetched: report(Progress.fetching(fetched)))
        give_up_access(Access.HUB)
        return ModelPlace(Path(source.location), source.name, asked.device, choose_dtype(model, asked.device))

    def hold(self, plan: LoadPlan, place: ModelPlace, announce: Callable[[Phase], Announce]) -> Weights:
        """Have the weights of a plan in memory: only its adapters are loaded where the base is there already."""
        loaded = self._loaded
        if loaded is not None and loaded.weights.plan == plan:
            return loaded.weights
        if loaded is not None and loaded.weights.plan.model == plan.model:
            weights = loaded.weights
            weights.exchange(plan, announce("loading_adapter"))
        else:
            self._loaded = loaded = None  # its memory is needed
            weights = Weights(plan, place, announce("loading_model"))
        folders = [trained.folder for trained in plan.trained.values()]
        tokenizer = load_chat_tokenizer(folders, weights.place.folder, weights.place.name)
        self._loaded = _Loaded(weights, tokenizer)
        return weights

    def generate(self, params: JsonObject, request: Request) -> Steps:
        """Write an answer on each branch, one token a turn."""
        ask = ChatRequest.model_validate(params)
        loaded = self._require_loaded()
        prompt = render_prompt(ask.messages, loaded.tokenizer)
        answers = [
            begin_answer(branch, loaded.weights.branch(branch), prompt.ids, ask.sampling, loaded.tokenizer)
            for branch in ask.branches
        ]
        while answers:
            for answer in answers:
                if self._loaded is not loaded:
                    raise RunError("Another model was loaded while this answer was written.", "Ask again.")
                with memory_errors(loaded.weights.place):
                    chunk = answer.stop() if request.is_cancelled() else answer.advance()
                if chunk is not None:
                    request.progress(chunk.model_dump(mode="json"))
                yield
            answers = [answer for answer in answers if not answer.done]
        return {}

    def prompt(self, params: JsonObject, _: Request) -> JsonObject:
        """Return what the model would read."""
        ask = ChatRequest.model_validate(params)
        return render_prompt(ask.messages, self._require_loaded().tokenizer).model_dump(mode="json")

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise RunError("No model is loaded.", "Load a run, an adapter or a model first.")
        return self._loaded


def _warm_up(branch: BranchWeights, place: ModelPlace) -> None:
    """Read a few tokens, so the first answer does not wait for pages and kernels that are touched once."""
    ids = torch.zeros(1, _WARM_UP_TOKENS, dtype=torch.long, device=branch.holder.model.device)
    with torch.inference_mode(), memory_errors(place):
        cache = branch.answer_cache(_WARM_UP_TOKENS + 1)
        branch.next_logits(ids, cache)
        if isinstance(cache, LentCache):  # records the pass of a token
            branch.next_logits(ids[:, :1], cache)


if __name__ == "__main__":
    worker = ChatWorker(LoratoryHome(Path(sys.argv[1])))
    serve({"load": worker.load, "generate": worker.generate, "prompt": worker.prompt})
