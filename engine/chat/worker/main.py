"""The process that holds a model and generates answers, over JSON lines: `python -P -m loratory.engine.chat.worker.main HOME`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from loratory.engine.chat.contract import Branch, ChatRequest, JobProgress, LoadedModel, Phase, PromptView
from loratory.engine.chat.target import LoadPlan, LoadRequest
from loratory.engine.chat.worker import answer as answer_rules
from loratory.engine.chat.worker.static_cache import LentCache
from loratory.engine.chat.worker.weights import Announce, BranchWeights, ModelSpec, Weights, choose_dtype, memory_errors
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.render.images import image_text_of, images_of
from loratory.engine.errors import ModelError, RunError
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import JsonObject, Request, Steps, serve
from loratory.engine.processes.spawn import Access, give_up_access

_WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class _ActiveModel:
    weights: Weights
    tokenizer: answer_rules.DecodingTokenizer


class ChatWorker:
    """Serves the requests of `ChatSession`."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home
        self._active: _ActiveModel | None = None

    def load(self, params: JsonObject, request: Request) -> JsonObject:
        """Load a plan; only its adapters where the base is in memory already."""
        load_request = LoadRequest.model_validate(params)
        plan = load_request.plan

        def report(progress: JobProgress) -> None:
            request.progress(progress.model_dump(mode="json"))

        def announce(phase: Phase) -> Announce:
            return lambda message: report(JobProgress(phase=phase, message=message))

        has_base = self._active is not None and self._active.weights.plan.model == plan.model
        spec = self._active.weights.spec if self._active is not None and has_base else self.find(load_request, report)
        weights = self.hold(plan, spec, announce)
        branches: tuple[Branch, ...] = (*plan.trained_weights,) or ("base",)
        for branch in branches:
            _warm_up(weights.branch(branch), weights.spec)
        report(JobProgress(phase="ready", message=f"{weights.spec.name} is ready.", fraction=1.0))
        return LoadedModel(
            name=weights.spec.name,
            method=plan.method_name,
            branches=weights.branch_names,
            device=weights.spec.device.name,
            dtype=str(weights.spec.dtype).removeprefix("torch."),
            quantization=plan.model.quantization,
            weights_bytes=weights.size_bytes,
            adapter_bytes=weights.adapter_bytes,
            context_length=answer_rules.context_length(next(weights.holders()).model),
            takes_images=image_text_of(self._require_loaded().tokenizer) is not None,
            notes=self.notes(plan, weights.spec),
        ).model_dump(mode="json")

    def find(self, load_request: LoadRequest, report: Callable[[JobProgress], None]) -> ModelSpec:
        """Download the base model if needed, then drop the login for it."""
        model = load_request.plan.model
        source = resolve_model(
            model, load_request.plan.home(self._home), lambda download: report(JobProgress.fetching(download))
        )
        give_up_access(Access.HUB)
        return ModelSpec(
            Path(source.location), source.name, load_request.device, choose_dtype(model, load_request.device),
            load_request.media,
        )  # fmt: skip

    def notes(self, plan: LoadPlan, spec: ModelSpec) -> tuple[str, ...]:
        """Return what the person should know about a plan and its base."""
        return (*plan.notes, *plan.base_changes(spec.folder, spec.name, self._home))

    def hold(self, plan: LoadPlan, spec: ModelSpec, announce: Callable[[Phase], Announce]) -> Weights:
        """Load the weights of a plan; only its adapters if the base is in memory already."""
        active = self._active
        if active is not None and active.weights.plan == plan:
            return active.weights
        weights = active.weights if active is not None and active.weights.plan.model == plan.model else None
        self._active = active = None  # its memory is free before another model takes some
        if weights is not None:
            weights.exchange(plan, announce("loading_adapter"))
        else:
            weights = Weights(plan, spec, announce("loading_model"))
        folders = [trained_weights.folder for trained_weights in plan.trained_weights.values()]
        tokenizer = answer_rules.load_chat_tokenizer(folders, weights.spec.folder, weights.spec.name, plan.vision)
        weights.show_images(answer_rules.image_inputs_of(tokenizer, weights.spec.media))
        self._active = _ActiveModel(weights, tokenizer)
        return weights

    def generate(self, params: JsonObject, request: Request) -> Steps:
        """Generate an answer on each branch, one token a turn."""
        active, answers = self._require_loaded(), self.begin(ChatRequest.model_validate(params))
        while answers:
            for answer in answers:
                if self._active is not active:
                    raise RunError("Another model was loaded while this answer was written.", "Ask again.")
                with memory_errors(active.weights.spec):
                    chunk = answer.stop() if request.is_cancelled() else answer.advance()
                if chunk is not None:
                    request.progress(chunk.model_dump(mode="json"))
                yield
            answers = [answer for answer in answers if not answer.is_done]
        return {}

    def begin(self, chat_request: ChatRequest) -> list[answer_rules.Answer]:
        """Return the answers of a request, of which nothing is written yet."""
        active = self._require_loaded()
        prompt, images = self._render(chat_request), images_of(chat_request.messages)
        return [
            answer_rules.begin_answer(
                branch, active.weights.branch(branch), prompt.ids, chat_request.sampling, active.tokenizer, images
            )
            for branch in chat_request.branches
        ]

    def prompt(self, params: JsonObject, _: Request) -> JsonObject:
        """Return the prompt that the model would get."""
        return self._render(ChatRequest.model_validate(params)).model_dump(mode="json")

    def _render(self, chat_request: ChatRequest) -> PromptView:
        active, images = self._require_loaded(), images_of(chat_request.messages)
        if images and active.weights.spec.media is not None:
            store = MediaStore(active.weights.spec.media)
            missing = [ref for ref in images if store.find(ref.digest) != ref]
            if missing:
                what = f"The image {missing[0].digest[:12]} is not in the media store."
                raise ModelError(what, "Add it again; a model on another machine takes no images.")
        return answer_rules.render_prompt(chat_request.messages, active.tokenizer)

    def _require_loaded(self) -> _ActiveModel:
        if self._active is None:
            raise RunError("No model is loaded.", "Load a run, an adapter or a model first.")
        return self._active


def _warm_up(branch: BranchWeights, spec: ModelSpec) -> None:
    """Run a few tokens, so the first answer does not wait for memory pages and kernels."""
    ids = torch.zeros(1, _WARM_UP_TOKENS, dtype=torch.long, device=branch.holder.model.device)
    with torch.inference_mode(), memory_errors(spec):
        cache = branch.answer_cache(_WARM_UP_TOKENS + 1)
        branch.next_logits(ids, cache)
        if isinstance(cache, LentCache):  # captures the pass of a token
            branch.next_logits(ids[:, :1], cache)


if __name__ == "__main__":
    worker = ChatWorker(LoratoryHome(Path(sys.argv[1])))
    serve({"load": worker.load, "generate": worker.generate, "prompt": worker.prompt})
