"""Ask a server for answers, and read them with the run's model under several readings of what may differ."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from loratory.engine.chat.worker.answer import DecodingTokenizer
from loratory.engine.chat.worker.weights import BranchWeights, Weights
from loratory.engine.data.conversation import Message
from loratory.engine.data.render.template import ChatTokenizer
from loratory.engine.data.render.tokenize import Encoded, TokenizedRow, prompt_ids
from loratory.engine.endpoint import Endpoint, refusal
from loratory.engine.errors import EngineError, ModelError, RunError, shorten
from loratory.engine.evaluation.server_check import (
    KEY_VARIABLE,
    Evidence,
    Fit,
    PromptReplies,
    Reading,
    Server,
    ServerAnswer,
    ServerCheckConfig,
    ServerReplies,
)
from loratory.engine.runs.webhook import resolve

_REPEATED = 5  # prompts
_LONGEST_NAME = 1000  # characters of a model's name
_LONGEST_TOKEN = 64  # characters
_TIED = 0.02  # nats: as likely as the likeliest token
_OK, _MALFORMED = 200, (400, 404, 405, 422, 501)
_NEUTRAL = {"repeat_penalty": 1.0, "repetition_penalty": 1.0}  # in llama.cpp and Ollama, in vLLM and SGLang
_OWNERS: Mapping[str, Server] = {
    "vllm": "vllm", "llamacpp": "llamacpp", "library": "ollama", "sglang": "sglang", "organization_owner": "lmstudio",
    "loratory": "loratory", "me": "llamacpp",
}  # fmt: skip
_TURNS = (Message("user", "Hello."), Message("assistant", "Hello."), Message("user", "Thank you."))
_SYSTEM = (Message("system", "Answer in English."), Message("user", "Hello."))


class CheckedServer:
    """An OpenAI-compatible server, asked for the likeliest answers."""

    def __init__(self, settings: ServerCheckConfig, *, allows_private: bool) -> None:
        key = os.environ.pop(KEY_VARIABLE, None)
        values = {"endpoint": settings.url.strip(), "model": settings.model.strip() or "-", "answer_tokens": 1}
        resolver = None if allows_private else partial(resolve, allows_private=False)
        self._endpoint = Endpoint(values, key, settings.timeout, resolver)
        status, text = self._endpoint.request("/models")
        models = _models(text) if status == _OK else []
        if status != _OK and (not settings.model or status not in _MALFORMED):
            raise refusal(status, text)
        names = [str(model.get("id", "")) for model in models]
        self.model = settings.model.strip() or next(iter(names), "")[:_LONGEST_NAME]
        if not self.model or (
            names and settings.model and self.model not in names and f"{self.model}:latest" not in names
        ):
            what = (
                f"The server has no model {self.model}; it has {shorten(', '.join(names[:10]), 300)}."
                if names
                else "The server names no model."
            )
            raise ModelError(what, "Name its model.")
        owner = next((str(model.get("owned_by", "")) for model in models if model.get("id") == self.model), "")
        self.kind: Server = _OWNERS.get(owner.lower(), "")
        self.most, self._offers_log_probabilities = settings.max_new_tokens, True
        self._completes: bool | None = None  # None until the route was tried
        self._takes_ids = True

    def chat(self, turns: Sequence[Message], most: int | None = None) -> ServerAnswer:
        """Return the answer to a conversation; a ModelError where there is none."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        status, text = self._request("/chat/completions", {"messages": messages}, {"logprobs": True}, most)
        answer = _read(text, "message") if status == _OK else None
        if answer is None:
            raise refusal(status, text)
        return answer

    def complete(self, ids: Sequence[int], text: str) -> ServerAnswer | None:
        """Return the continuation of a prompt, given as tokens where the server takes them; None without such a route."""
        for prompt in (list(ids), text) if self._takes_ids else (text,):
            if self._completes is False:
                return None
            status, body = self._request("/completions", {"prompt": prompt}, {"logprobs": 1, **_NEUTRAL}, None)
            answer = _read(body, "text") if status == _OK else None
            if answer is not None and (answer.prompt_tokens in (None, len(ids)) or prompt is text):
                self._completes = True
                return answer
            self._takes_ids = False
        self._completes = self._completes or False
        return None

    def _request(self, path: str, prompt: dict[str, Any], more: dict[str, Any], most: int | None) -> tuple[int, str]:
        payload = {"model": self.model, "max_tokens": most or self.most, "temperature": 0, "stream": False, **prompt}
        if self._offers_log_probabilities:
            status, text = self._endpoint.request(path, payload | more)
            if status not in _MALFORMED:
                return status, text
            self._offers_log_probabilities = "prompt" in prompt  # a missing route says nothing of chat
        return self._endpoint.request(path, payload)


def _models(text: str) -> list[dict[str, Any]]:
    try:
        models = json.loads(text)["data"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return []
    return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []


def _read(body: str, part: str) -> ServerAnswer | None:
    """Return the answer in a response; None where it has none."""
    try:
        reply = json.loads(body)
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        text = choice[part]["content"] if part == "message" else choice[part]
        offer, prompt_tokens = choice.get("logprobs") or {}, usage.get("prompt_tokens")
        values = offer.get("token_logprobs") or [entry["logprob"] for entry in offer.get("content") or ()]
        return ServerAnswer(
            text=str(text or ""),
            ends=choice.get("finish_reason") == "stop",
            prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) and prompt_tokens else None,
            log_probabilities=tuple(
                value for value in map(float, (value for value in values if value is not None)) if math.isfinite(value)
            ),
        )
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def query_server(
    server: CheckedServer,
    tokenizers: tuple[DecodingTokenizer, ChatTokenizer],
    rows: Sequence[TokenizedRow],
    report: Callable[[str, float], None],
) -> ServerReplies:
    """Ask for an answer to each row as chat and as completion.

    Args:
        tokenizers: Of the run, and of its base, whose chat template may be another one.
        report: Called with what is done and the share that is; may raise to end.

    Raises:
        ModelError: If the server does not answer.
        RunError: If no row has turns of plain text.
    """
    tokenizer, base_tokenizer = tokenizers
    pairs = [
        (row.prompt.turns, row.input_ids) for row in rows if row.prompt is not None and _is_plain(row.prompt.turns)
    ]
    if not pairs:
        raise RunError("No held-out prompt of this run is a conversation of text alone.", "Check a run that has some.")
    prompts = list[PromptReplies]()
    for number, (turns, ids) in enumerate(pairs):
        report(f"Asking the server, {number + 1:,} of {len(pairs):,} prompts.", number / len(pairs))
        completion = server.complete(ids, tokenizer.decode(ids))
        prompts.append(
            PromptReplies(
                readings=dict(_readings(turns, ids, tokenizer, base_tokenizer)),
                chat=_with_ids(server.chat(turns), tokenizer, server.most),
                completion=None if completion is None else _with_ids(completion, tokenizer, server.most),
            )
        )
    again = [server.chat(turns).text for turns, _ in pairs[:_REPEATED]]
    return ServerReplies(
        server=server.kind,
        model=server.model,
        prompts=tuple(prompts),
        more_of_turns=_more(server, _TURNS, tokenizer),
        more_of_system=_more(server, _SYSTEM, tokenizer),
        changing=sum(prompt.chat.text != text for prompt, text in zip(prompts, again, strict=False)) / len(again),
    )


def _with_ids(answer: ServerAnswer, tokenizer: ChatTokenizer, most: int) -> ServerAnswer:
    """Return an answer with its tokens; what a server writes beyond the limit is left out."""
    encoded = Encoded("", [], [])
    encoded.append(answer.text[: most * _LONGEST_TOKEN], tokenizer)
    is_cut = len(encoded.ids) > most
    return answer.model_copy(update={"ids": tuple(encoded.ids[:most]), "ends": answer.ends and not is_cut})


def _is_plain(turns: Sequence[Message]) -> bool:
    return bool(turns) and not any(turn.images or turn.tool_calls or turn.role == "tool" for turn in turns)


def _readings(
    turns: Sequence[Message], ids: list[int], tokenizer: ChatTokenizer, base_tokenizer: ChatTokenizer
) -> Iterator[tuple[Reading, tuple[int, ...]]]:
    """Yield what the model may have read in place of a prompt."""
    yield "tuned", tuple(ids)
    yield "base", tuple(ids)
    bos = tokenizer.bos_token_id
    if bos is not None:
        yield "bos_twice", (bos, *ids)
        if ids[:1] == [bos]:
            yield "bos_missing", tuple(ids[1:])
    try:
        own = prompt_ids(turns, base_tokenizer)
    except EngineError:
        return
    if own != ids:
        yield "base_template", tuple(own)


def _more(server: CheckedServer, turns: Sequence[Message], tokenizer: ChatTokenizer) -> int | None:
    """Return how many tokens more than the run's a chat prompt has at the server; None where that is not known."""
    try:
        tokens = server.chat(turns, most=1).prompt_tokens
        return tokens - len(prompt_ids(turns, tokenizer)) if tokens is not None else None
    except EngineError:  # the template refuses it
        return None


class _Read(NamedTuple):
    """How one answer looks to a model."""

    excess: list[float]
    differences: list[float]
    runs_on: bool
    repeats: int  # tokens other than the likeliest one, where that one occurs before


def read_answers(
    replies: ServerReplies, weights: Weights, ends: frozenset[int], report: Callable[[str, float], None]
) -> Evidence:
    """Let base and tuned read a server's answers after each reading of their prompts; `ends` are tokens that end an answer."""
    chat, completion = dict[Reading, list[_Read]](), dict[Reading, list[_Read]]()
    for number, prompt in enumerate(replies.prompts):
        report(f"Reading answers, {number + 1:,} of {len(replies.prompts):,}.", number / len(replies.prompts))
        for reading, ids in prompt.readings.items():
            branch = weights.branch("base" if reading == "base" else "tuned")
            chat.setdefault(reading, []).append(_read_answer(branch, ids, prompt.chat, ends))
            if prompt.completion is not None and reading in ("tuned", "base"):
                read = _read_answer(branch, ids, prompt.completion, ends)
                completion.setdefault(reading, []).append(read)
    unlikely = sum(value > _TIED for read in chat["tuned"] for value in read.excess)
    counts = [(prompt.chat.prompt_tokens, len(prompt.readings["tuned"])) for prompt in replies.prompts]
    return Evidence(
        server=replies.server,
        model=replies.model,
        prompts=len(replies.prompts),
        chat={reading: _fit(reads) for reading, reads in chat.items()},
        completion={reading: _fit(reads) for reading, reads in completion.items()},
        more_tokens=tuple(theirs - own for theirs, own in counts if theirs is not None),
        more_of_turns=replies.more_of_turns,
        more_of_system=replies.more_of_system,
        runs_on=sum(read.runs_on for read in chat["tuned"]) / len(replies.prompts),
        changing=replies.changing,
        repeats=sum(read.repeats for read in chat["tuned"]) / max(1, unlikely),
    )


def _read_answer(branch: BranchWeights, prompt: Sequence[int], answer: ServerAnswer, ends: frozenset[int]) -> _Read:
    """Compare each token of an answer with the likeliest one; reading ends where the model would have ended."""
    ids, count = answer.ids, len(answer.ids) + answer.ends
    if not count:
        return _Read([], [], runs_on=False, repeats=0)
    logits = branch.logits_at([*prompt, *ids], range(len(prompt) - 1, len(prompt) - 1 + count))
    values = torch.log_softmax(logits, -1)
    highest, likeliest = (part.tolist() for part in values.max(-1))
    own = [float(values[at, token]) for at, token in enumerate(ids)]
    if answer.ends:
        own.append(float(values[-1, sorted(ends)].max()))
    excess = [high - value for high, value in zip(highest, own, strict=True)]
    over = (at for at, token in enumerate(ids) if token in ends or (likeliest[at] in ends and excess[at] > _TIED))
    end = next(over, None)
    theirs = answer.log_probabilities if len(answer.log_probabilities) in (len(ids), count) else ()
    differences = [abs(value - other) for value, other in zip(theirs, own[:end], strict=False)]
    before = (likeliest[at] in {*prompt, *ids[:at]} for at, value in enumerate(excess[:end]) if value > _TIED)
    return _Read(excess[:end], differences, runs_on=end is not None, repeats=sum(before))


def _fit(reads: Sequence[_Read]) -> Fit:
    excess = [value for read in reads for value in read.excess]
    differences = [value for read in reads for value in read.differences]
    count = len(excess)
    return Fit(
        tokens=count,
        likeliest=sum(value <= _TIED for value in excess) / max(1, count),
        excess=sum(excess) / max(1, count),
        difference=sum(differences) / len(differences) if differences else None,
    )
