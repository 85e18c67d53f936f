"""Check a server: whether a model behind an OpenAI-compatible endpoint answers as a run does, and if not, why.

The run's model reads the server's greedy answers under several readings of what may have gone wrong: another start of the
prompt, the base alone. Under the right one, each token is the likeliest.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import SecretStr

from loratory.engine.chat.contract import ChatTarget, FrozenModel, JobProgress, OnProgress
from loratory.engine.chat.target import LoadPlan, plan_load
from loratory.engine.config.run import RunConfig, RunSection
from loratory.engine.data.hub import hub_access
from loratory.engine.errors import RunError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.hardware.devices import choose_device
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import JsonObject
from loratory.engine.runs.run import RunFolder
from loratory.engine.section import Section, setting

WORKER_MODULE = "loratory.engine.evaluation.worker.main"
KEY_VARIABLE = "LORATORY_SERVER_KEY"  # of the worker that asks
_FILE = "server-check.json"  # of a run, with the newest check

FITS = 0.02  # nats a token: what rounding to 16 bits costs at most
_ROUNDING = 0.004  # nats a token: below, a difference tells nothing
_SAME_WEIGHTS = 0.06  # nats: mean difference of log-probabilities up to which weights are equally precise
_RELATED = 0.5  # nats a token: with more, another model has written the answers
_MOST = 0.5  # share of the answers
_RUN_ON = 0.25  # of the answers, some of which may not end within the limit
_PENALIZED = 0.9  # share of the tokens that another one was taken for

Reading = Literal["tuned", "base", "bos_twice", "bos_missing", "base_template"]
Cause = Literal[
    "same", "not_applied", "other_model", "quantization", "bos_twice", "bos_missing", "system_prompt", "template",
    "runs_on", "sampling", "unclear",
]  # fmt: skip
Server = Literal["", "vllm", "llamacpp", "ollama", "sglang", "lmstudio", "loratory"]


class ServerCheckConfig(Section):
    """Settings of one check."""

    url: str = setting(..., "Server", min_length=1, max_length=2000)
    """Address of an OpenAI-compatible server, such as http://localhost:8000/v1."""
    model: str = setting("", "Model at the server", max_length=300)
    """Name of the model at the server. Empty takes its only one, or the first."""
    prompts: int = setting(20, "Prompts", ge=1, le=500)
    """Held-out prompts that the server answers, spread evenly."""
    max_new_tokens: int = setting(96, "Max new tokens", ge=1, le=4096)
    """Token limit of an answer. An answer that does not end within it does not show whether the server knows the stop token."""
    timeout: float = setting(120.0, "Timeout (s)", ge=1.0, le=3600.0)
    """How long to wait for one answer."""


class ServerAnswer(FrozenModel):
    """An answer of the server."""

    text: str
    ends: bool  # by itself, not at the token limit
    prompt_tokens: int | None = None  # None where the server does not count them
    log_probabilities: tuple[float, ...] = ()  # of its tokens; empty where it offers none
    ids: tuple[int, ...] = ()  # of the text, by the run's tokenizer


class PromptReplies(FrozenModel):
    """A prompt as the model may have read it, and the answers to it."""

    readings: dict[Reading, tuple[int, ...]]  # its tokens
    chat: ServerAnswer
    completion: ServerAnswer | None  # of the rendered prompt; None where the server has no such route


class ServerReplies(FrozenModel):
    """What a server answered, before the run's model reads it."""

    server: Server
    model: str
    prompts: tuple[PromptReplies, ...]
    more_of_turns: int | None  # tokens of a conversation of three turns more than the run's; None where not counted
    more_of_system: int | None  # the same of one with a system prompt of its own
    changing: float  # the share of answers that differ when they are asked for again
    notes: tuple[str, ...] = ()


class ServerCheckOrder(FrozenModel):
    """The request for the worker process, with folders and device resolved."""

    plan: LoadPlan
    run: RunConfig
    settings: ServerCheckConfig
    device: Device
    allows_private: bool  # addresses of this machine and of private networks
    replies: ServerReplies | None = None  # once the server was asked, which needs no device


class Fit(FrozenModel):
    """How the server's answers look to a model: what it would have written, or not."""

    tokens: int
    likeliest: float  # the share of tokens that are
    excess: float  # mean of how much less likely a token is than the likeliest one, in nats
    difference: float | None = None  # mean of the server's log-probabilities, in nats; None if it offers none


class Evidence(FrozenModel):
    """What a server answered, as figures."""

    server: Server
    model: str
    prompts: int
    chat: dict[Reading, Fit]
    completion: dict[Reading, Fit]  # of prompts as tokens or as rendered text; empty where the server has no such route
    more_tokens: tuple[int, ...] = ()  # of each chat prompt than the run's has; empty where they are not counted
    more_of_turns: int | None = None  # the same of a conversation of three turns
    more_of_system: int | None = None  # the same of one with a system prompt of its own
    runs_on: float = 0.0  # the share of answers that continue where the run's end
    changing: float = 0.0  # the share of answers that differ when they are asked for again
    repeats: float = 0.0  # the share of tokens other than the likeliest where that one occurs before


class Finding(NamedTuple):
    """A cause, with its figures, and what to do."""

    cause: Cause
    text: str
    fix: str = ""


class ServerCheck(FrozenModel):
    """The result of a check."""

    evidence: Evidence
    checkpoint: str | None = None  # None: the final result
    seconds: float = 0.0
    time: str = ""  # in UTC
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Why answers differ, the most important first; one finding `same` where they do not."""
        fit = self.evidence.chat["tuned"]
        text = f"It answers as the run does: {fit.likeliest:.1%} of {fit.tokens:,} tokens are the run's likeliest ones."
        if self.evidence.chat["base"].excess <= FITS:
            text += " The base model would answer so too, so these prompts do not show whether the adapter is applied."
        return tuple(judge(self.evidence)) or (Finding("same", text),)

    @property
    def is_same(self) -> bool:
        """Whether the server answers as the run does."""
        return [finding.cause for finding in self.findings] == ["same"]


def judge(evidence: Evidence) -> Iterator[Finding]:
    """Yield why a server answers otherwise than the run; `same` where it does not."""
    weights, chat = evidence.completion or evidence.chat, evidence.chat["tuned"]
    if not chat.tokens:
        yield _finding("unclear", "The server's answers are empty.", evidence.server)
        return
    if evidence.changing >= _MOST and chat.excess > FITS:
        share = f"{evidence.changing:.0%} of the answers differ when they are asked for again at temperature 0"
        yield _finding("sampling", f"{share}.", evidence.server)
        return
    tuned, base = weights["tuned"], weights["base"]
    if base.excess <= FITS < tuned.excess:
        text = f"{base.likeliest:.0%} of its answers' tokens are the base model's likeliest ones, {tuned.likeliest:.0%} are the run's."
        yield _finding("not_applied", f"It answers as the base model does: {text}", evidence.server)
        return
    prompt = list(_about_prompt(evidence))
    penalty = not prompt and chat.excess > FITS and evidence.repeats >= _PENALIZED
    best = min(fit.excess for fit in weights.values())
    if best > _RELATED and not (prompt and not evidence.completion):
        text = f"{tuned.likeliest:.0%} of the answers' tokens are the run's likeliest ones"
        yield _finding("other_model", f"Another model wrote them: {text}.", evidence.server)
        return
    if penalty:
        text = f"{1 - chat.likeliest:.0%} of the tokens are not the likeliest, and {evidence.repeats:.0%} of those that are occur before"
        yield _finding("sampling", f"The server penalizes repetitions: {text}.", evidence.server)
    rounding = tuned.excess > FITS if tuned.difference is None else tuned.difference > _SAME_WEIGHTS
    if rounding and (evidence.completion or (evidence.more_tokens and not prompt and not penalty)):
        figure = (
            f"{tuned.likeliest:.0%} of the tokens are the run's likeliest ones" if tuned.difference is None
            else f"the mean difference of log-probabilities is {tuned.difference:.2f}"
        )  # fmt: skip
        yield _finding("quantization", f"The weights are rounded otherwise than the run's: {figure}.", evidence.server)
    elif chat.excess > FITS and not (prompt or penalty or evidence.runs_on >= _RUN_ON):
        text = f"Its chat differs: {chat.likeliest:.0%} of the tokens are the run's likeliest ones. Whether by prompt, sampling or weights is not known."
        yield _finding("unclear", text, evidence.server)
    yield from prompt
    if not prompt and evidence.runs_on >= _RUN_ON:  # after another prompt the run might end elsewhere
        text = f"{evidence.runs_on:.0%} of the answers continue where the run's end: the server does not know the stop token."
        yield _finding("runs_on", text, evidence.server)


def _about_prompt(evidence: Evidence) -> Iterator[Finding]:
    """Yield what is wrong with chat prompts, by their length and by the reading that fits the answers best."""
    chat, more, server = evidence.chat, evidence.more_tokens, evidence.server
    best: Reading = min(chat, key=lambda reading: chat[reading].excess)
    better = chat[best].excess < chat["tuned"].excess / 4 and chat["tuned"].excess > _ROUNDING
    if (more and not any(more)) or not (more or better or chat["tuned"].excess > FITS):
        if best == "base_template" and chat["tuned"].excess > FITS >= chat[best].excess:
            yield _finding("template", "The server uses the base model's own chat template.", server)
        return
    counts = f"its chat prompts have {_difference(more)} the run's" if more else "its answers do not fit the run's"
    if {*more} == {1} or (best == "bos_twice" and not more):
        yield _finding("bos_twice", f"The chat prompt begins with the BOS token twice: {counts}.", server)
    elif {*more} == {-1} or (best == "bos_missing" and not more):
        yield _finding("bos_missing", f"The chat prompt lacks its BOS token: {counts}.", server)
    elif more and {*more} == {evidence.more_of_turns}:  # however many turns it has
        only = " that has none of its own" if evidence.more_of_system == 0 else ""
        text = f"The server puts a system prompt before every conversation{only}: {counts}."
        yield _finding("system_prompt", text, server)
    elif more or evidence.completion:
        own = ", the base model's own" if best == "base_template" and chat[best].excess <= FITS else ""
        yield _finding("template", f"The chat template is another one{own}: {counts}.", server)


def _difference(values: Sequence[int]) -> str:
    """Return by how many tokens prompts differ, such as "7 tokens fewer than"."""
    low, high = min(values), max(values)
    if low < 0 < high:
        return f"{-low} tokens fewer to {high} more than"
    sizes = sorted((abs(low), abs(high)))
    return f"{' to '.join(map(str, dict.fromkeys(sizes)))} tokens {'fewer' if low < 0 else 'more'} than"


_TEMPLATE: Mapping[Server, str] = {
    "vllm": "Start vLLM with --chat-template and the export's chat_template.jinja.",
    "llamacpp": "Start llama-server with --jinja --chat-template-file and the export's chat_template.jinja.",
    "ollama": "Create the model from the export's Modelfile: ollama create NAME -f Modelfile.",
    "sglang": "Start SGLang with --chat-template and the export's chat_template.jinja.",
}
_ADAPTER: Mapping[Server, str] = {
    "vllm": "Start vLLM with --enable-lora --lora-modules NAME=FOLDER, and ask for NAME.",
    "llamacpp": "Start llama-server with --lora and the adapter, or export the run as GGUF, which has it merged.",
    "ollama": "Export the run as GGUF, which has the adapter merged, and create the model from its Modelfile.",
    "sglang": "Start SGLang with --enable-lora --lora-paths NAME=FOLDER, and ask for NAME.",
}
_FIXES: Mapping[Cause, tuple[Mapping[Server, str], str]] = {
    "not_applied": (_ADAPTER, "Load the adapter there, or serve the merged export; then name that model."),
    "other_model": ({}, "Name the right model with --model, and check which files the server has loaded."),
    "quantization": (
        {"llamacpp": "Export GGUF as q8_0 or f16 for answers that are closer.", "ollama": "Export GGUF as q8_0 or f16 for answers that are closer."},
        "Serve 16-bit weights for answers that are the same.",
    ),
    "bos_twice": (_TEMPLATE, "Turn off that the tokenizer adds BOS (add_bos_token), or remove it from the template."),
    "bos_missing": (_TEMPLATE, "Turn on that the tokenizer adds BOS (add_bos_token), or begin the template with it."),
    "system_prompt": (
        {"ollama": "Remove SYSTEM from the Modelfile."},
        "Remove the system prompt from the server's settings, or train with it.",
    ),
    "template": (_TEMPLATE, "Give the server the chat template of the export, in chat_template.jinja."),
    "runs_on": (
        {"ollama": "Add PARAMETER stop with the end of a turn to the Modelfile, as the export's has it."},
        "Give the server the export's generation_config.json, whose eos_token_id has the end of a turn.",
    ),
    "unclear": ({}, "Compare the rendered prompt and the sampling in the server's log with the run's."),
    "sampling": (
        {"ollama": "Set PARAMETER temperature 0 and PARAMETER repeat_penalty 1 in the Modelfile."},
        "Set temperature 0, and repeat_penalty or repetition_penalty 1, at the server or in each request.",
    ),
}  # fmt: skip


def _finding(cause: Cause, text: str, server: Server) -> Finding:
    by_server, fix = _FIXES[cause]
    return Finding(cause, text, by_server.get(server, fix))


@dataclass(eq=False)
class ServerCheckJob:
    """One check; can be stopped from another thread."""

    home: LoratoryHome
    target: ChatTarget  # a run, with or without a checkpoint
    settings: ServerCheckConfig
    key: SecretStr | None = None  # of the server
    choose: Callable[[RunSection], Device] = choose_device
    _stop_event: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, on_progress: OnProgress = lambda _: None) -> ServerCheck:
        """Ask the server, let the run's model read its answers, and save the result with the run.

        Raises:
            RunError: If this is not a run, or it has no prompts.
            ModelError: If the server cannot be asked, or the model cannot be loaded.
            DeviceError: If the device is in use, or its memory too small.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        from loratory.engine.runs.webhook import allows_private_hosts

        folder = self.target.trained_folder
        if folder is None or not RunFolder(folder).config.is_file():
            raise RunError("Only a run can be compared with a server, because only a run has prompts.", "Choose a run.")
        config, plan = RunFolder(folder).read_config(), plan_load(self.target, self.home)
        device = self.choose(RunSection())
        order = ServerCheckOrder(
            plan=plan, run=config, settings=self.settings, device=device,
            allows_private=allows_private_hosts(self.home),
        )  # fmt: skip
        # The server may be our own, and on this device: it is asked before the run's model takes the device.
        replies = ServerReplies.model_validate(self._call("query_server", order, on_progress))
        answer = self._call("read_answers", order.model_copy(update={"replies": replies}), on_progress)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        assert self.target.tuned is not None
        facts = {"time": now, "checkpoint": self.target.tuned.checkpoint}
        check = ServerCheck.model_validate(answer).model_copy(update=facts)
        write_atomically(folder / _FILE, check.model_dump_json(indent=1))
        return check

    def _call(self, method: str, order: ServerCheckOrder, on_progress: OnProgress) -> JsonObject:
        plan, reads = order.plan, order.replies is not None
        key = {} if self.key is None or reads else {KEY_VARIABLE: self.key.get_secret_value()}
        job = DeviceJob(
            self.home, WORKER_MODULE, "evaluation", "Server check", order.device, holds_device=reads, model=plan.model.id,
            access=hub_access(plan.model, order.run.dataset), environment=key,
        )  # fmt: skip
        return job.run(
            method,
            order.model_dump(mode="json"),
            self._stop_event,
            lambda value: on_progress(JobProgress.model_validate(value)),
            lambda present: on_progress(JobProgress(phase="starting", message=present.why_wait)),
        )

    def stop(self) -> None:
        """Stop within seconds; no result is saved."""
        self._stop_event.set()


def read_check(run: Path, checkpoint: str | None = None) -> ServerCheck | None:
    """Return the newest check of a server against a run or a checkpoint; None where that was of another state, or none."""
    check = read_model(run / _FILE, ServerCheck)
    return check if check is not None and check.checkpoint == checkpoint else None


def describe_check(check: ServerCheck) -> Iterator[str]:
    """Yield the findings as sentences."""
    for finding in check.findings:
        yield f"{finding.text} {finding.fix}".strip()
    yield from check.notes
