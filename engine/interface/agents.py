"""A server of the Model Context Protocol, by which agents do what the page does, with the rights of a person.

A start is confirmed first: the agent's program asks the person where it can, and otherwise the agent gets a code, with which
it calls again. Deleting and publishing are left to the person.
"""

import functools
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import anyio.from_thread
from mcp.server.mcpserver import Context, Elicit, MCPServer, Resolve
from mcp.server.mcpserver.exceptions import MCPServerError, ResourceError, ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field
from pydantic_core import to_jsonable_python

from loratory.engine.accounts.access_tokens import SCOPES, AgentScope
from loratory.engine.accounts.audit import AuditKind
from loratory.engine.accounts.people import Action, Person, RunAccess, require
from loratory.engine.chat.contract import Branch, JobProgress
from loratory.engine.config.presets import list_presets
from loratory.engine.config.results import ExportKind
from loratory.engine.data.conversation import Message
from loratory.engine.errors import AccountError, EngineError, RunError, shorten
from loratory.engine.evaluation.used_datasets import list_datasets
from loratory.engine.interface.workspace import Chat, Run, Workspace
from loratory.engine.models.catalog import search_catalog
from loratory.engine.quantities import gib
from loratory.engine.runs.prediction import plan_run
from loratory.engine.runs.summary import RunSummary

_CODE_SECONDS = 1800
_REPORT_SECONDS = 2.0
_NEXT = "Show the question to the person. Once they agree, call again with this confirmation."
_MOST_ROWS = 200  # runs in a list
_INSTRUCTIONS = """Fine-tune language models with PEFT. Settings are the name of a preset or the id of a run; changes are by
section and field, such as {"training.max_steps": 100, "dataset.source": "sample:loratory-faq"}. Begin with list_my_presets
and estimate. start_run needs a confirmation by the person: show them what it will take. Deleting runs and publishing are theirs."""


@dataclass(frozen=True)
class AgentAccess:
    """Whose rights a request has."""

    workspace: Workspace
    scopes: frozenset[AgentScope] = frozenset(SCOPES)
    person: Person | None = None  # None without accounts
    log: Callable[[AuditKind, str], None] = lambda _kind, _run_id: None  # an action on a run


class Confirmation(BaseModel):
    """What a person answers."""

    confirm: bool = Field(description="Whether to do it.")


class AgentServer(MCPServer[Any]):
    """The server; `access_of` says whose rights a request has, and raises an AccountError where it has none."""

    def __init__(self, access_of: Callable[[Context], AgentAccess]) -> None:
        super().__init__("loratory", title="Loratory", instructions=_INSTRUCTIONS, log_level="ERROR")
        self.access_of = access_of
        self.codes: dict[str, tuple[str, float]] = {}  # of starts to confirm, each with what starts and when it expires
        self.chats: dict[str, tuple[str, Chat]] = {}  # by owner: what is loaded, one for each
        for function, scope in _TOOLS.items():
            hints = ToolAnnotations(read_only_hint=scope == "read", destructive_hint=False)
            self.add_tool(_guard(function, scope), annotations=hints)
        for part, (read, mime_type) in _RESOURCES.items():
            self.resource(f"loratory://runs/{{run_id}}{part}", mime_type=mime_type)(_guard(read, "read", ResourceError))

    def unload(self, *owners: str) -> None:
        """Free the memory of chats, which would hold the device of other work."""
        for owner in owners:
            if owner in self.chats:
                self.chats.pop(owner)[1].close()

    def close(self) -> None:
        """Free all that was loaded."""
        self.unload(*self.chats)


Tool = Callable[..., Any]
_TOOLS: dict[Tool, AgentScope] = {}


def _tool(scope: AgentScope) -> Callable[[Tool], Tool]:
    def register(function: Tool) -> Tool:
        _TOOLS[function] = scope
        return function

    return register


def _guard(function: Tool, scope: AgentScope, failure: type[MCPServerError] = ToolError) -> Tool:
    """Let a function refuse what the token has no right to, say errors in two sentences, and return plain values."""

    @functools.wraps(function)
    def call(ctx: Context, **arguments: Any) -> Any:
        try:
            if scope not in _access(ctx).scopes:
                raise AccountError(f"This access is not for {SCOPES[scope]}.", "Ask the person for more.")
            value = function(ctx, **arguments)
        except EngineError as error:
            raise failure(str(error)) from error
        return (
            value if isinstance(value, str | Elicit | Confirmation) else to_jsonable_python(value, inf_nan_mode="null")
        )

    return call


def _server(ctx: Context) -> AgentServer:
    server = ctx.mcp_server
    assert isinstance(server, AgentServer)
    return server


def _access(ctx: Context) -> AgentAccess:
    return _server(ctx).access_of(ctx)


def _progress(ctx: Context) -> Callable[[JobProgress], None]:
    last = [0.0]

    def report(progress: JobProgress) -> None:
        if (now := time.monotonic()) - last[0] > _REPORT_SECONDS:
            last[0] = now
            anyio.from_thread.run(ctx.report_progress, progress.fraction or 0.0, 1.0, progress.message)

    return report


def _run(ctx: Context, run_id: str, action: Action) -> Run:
    access = _access(ctx)
    run = access.workspace.run(run_id)
    require(access.person, action, RunAccess(access.workspace.store.owner))
    return run


Settings = Annotated[str, Field(description="A preset's name or a run's id.")]
Changes = Annotated[dict[str, Any], Field(description='Settings by name, such as {"adapter.r": 16}.')]
RunId = Annotated[str, Field(description="A run's id, or its last characters.")]


@_tool("read")
def list_models(ctx: Context, query: str = "") -> list[dict[str, Any]]:  # noqa: ARG001 - as all tools have it
    """List models of the catalogue that can be fine-tuned; their ids go into model.id, as do ids on the Hugging Face Hub."""
    return [
        entry.model_dump(include={"id", "parameters", "context_length", "license", "about"})
        for entry in search_catalog(query)
    ]


@_tool("read")
def list_my_datasets(ctx: Context) -> list[dict[str, Any]]:
    """List the person's datasets; `source` goes into dataset.source. Samples are in the presets."""
    from loratory.engine.data.workshop import sets

    workspace = _access(ctx).workspace
    descriptions = (sets.describe(workspace.home, name) for name in sets.set_names(workspace.home))
    return list_datasets(workspace.home, workspace.store, descriptions)


@_tool("read")
def list_my_presets(ctx: Context) -> list[dict[str, Any]]:
    """List presets: complete settings to begin with."""
    return [
        {"name": preset.name, "title": preset.title, "about": preset.about, "settings": preset.mapping()}
        for preset in list_presets(_access(ctx).workspace.home)
    ]


@_tool("read")
def inspect_dataset(ctx: Context, settings: Settings, changes: Changes = {}) -> dict[str, Any]:  # noqa: B006 - never changed
    """Read every row of the dataset: what is kept, what is left out and why, lengths, trained tokens."""
    report = _access(ctx).workspace.inspect(settings, changes)
    return report.model_copy(update={"row_lengths": None}).model_dump(mode="json")


@_tool("read")
def render_row(ctx: Context, settings: Settings, row: int, changes: Changes = {}) -> dict[str, Any]:  # noqa: B006
    """Show a row, counted from 1, as training sees it: its text, and the pieces that are trained."""
    sequence = _access(ctx).workspace.render(settings, row, changes)[-1]
    pairs = zip(sequence.pieces, sequence.labels, strict=True)
    trained_text = "".join(piece for piece, label in pairs if label != -100)
    return {"text": "".join(sequence.pieces), "trained_text": trained_text, "tokens": len(sequence.input_ids)}


@_tool("read")
def estimate(
    ctx: Context,
    settings: Settings,
    changes: Changes = {},  # noqa: B006
    device: Annotated[str, Field(description="A GPU that is not here, such as RTX-4090; empty for this machine.")] = "",
) -> dict[str, Any]:
    """Estimate memory, steps and time of a run, whether it fits, and what would make it fit."""
    return _access(ctx).workspace.estimate(settings, changes, device=device or None).as_json()


@_tool("read")
def list_runs(ctx: Context, query: str = "") -> list[dict[str, Any]]:
    """List runs, newest first, with their figures."""
    return [_dump(summary) for summary in _access(ctx).workspace.figures(query)[:_MOST_ROWS]]


@_tool("read")
def run_status(ctx: Context, run_id: RunId) -> dict[str, Any]:
    """Return the state of a run and why, its figures, and the verdict on its curves."""
    run = _run(ctx, run_id, Action.READ)
    return _figures(run) | {"findings": [finding.text for finding in run.findings()]}


@_tool("read")
def compare_runs(ctx: Context, run_ids: list[str]) -> list[dict[str, Any]]:
    """Return the figures of several runs and the settings in which they differ."""
    runs = [_run(ctx, run_id, Action.READ) for run_id in run_ids]
    settings = [_flat(run.config.model_dump(mode="json")) for run in runs]
    names = (
        [name for name in settings[0] if len({json.dumps(values.get(name)) for values in settings}) > 1] if runs else []
    )
    return [
        _figures(run) | {"settings": {name: values.get(name) for name in names}}
        for run, values in zip(runs, settings, strict=True)
    ]


def _figures(run: Run) -> dict[str, Any]:
    return _dump(run.summary)


def _dump(summary: RunSummary) -> dict[str, Any]:
    return summary.model_dump(mode="json", exclude={"owner", "held_out", "phase"})


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, part in values.items() for name, value in part.items()}


def _what_it_takes(ctx: Context, settings: str, changes: Mapping[str, Any]) -> str:
    access = _access(ctx)
    require(access.person, Action.START)
    checked = access.workspace.check(settings, changes)
    config, plan = checked.config, plan_run(checked.config.training, checked.report)
    rows = f"{checked.report.train_rows:,} rows" + (
        f" in {plan.steps:,} steps, {plan.trained_tokens:,} trained tokens" if plan else ""
    )
    needed = checked.provenance.predicted_bytes
    memory = f"About {gib(needed)} GiB of memory. " if needed else ""
    place = (
        f"on Hugging Face Jobs ({config.jobs.flavor}, at most {config.jobs.limit_hours:g} h, which you pay)"
        if config.run.where == "jobs"
        else config.run.where
    )
    return f"Train {config.model.id} with {config.adapter.method} on {config.dataset.source}: {rows}. {memory}Where: {place}."


def _start_question(
    ctx: Context, settings: str, changes: dict[str, Any], confirmation: str
) -> Confirmation | Elicit[Confirmation]:
    """Ask the person where the agent's program can; a code is checked when the run starts."""
    if confirmation or not _can_ask(ctx):
        return Confirmation(confirm=False)
    return Elicit(_what_it_takes(ctx, settings, changes), Confirmation)


def _can_ask(ctx: Context) -> bool:
    return ctx.client_capabilities is not None and ctx.client_capabilities.elicitation is not None


@_tool("run")
def start_run(
    ctx: Context,
    settings: Settings,
    answer: Annotated[Confirmation, Resolve(_guard(_start_question, "run"))],
    changes: Changes = {},  # noqa: B006
    confirmation: Annotated[str, Field(description="The code of the call before, once the person has agreed.")] = "",
) -> dict[str, Any]:
    """Start a training run, once the person has confirmed what it takes. It continues in the background."""
    access, codes, now = _access(ctx), _server(ctx).codes, time.monotonic()
    action = json.dumps([access.workspace.store.owner, settings, changes], sort_keys=True)
    if not answer.confirm and not confirmation:
        if _can_ask(ctx):
            raise RunError("The person did not confirm the start.", "Ask them what to change.")
        code = secrets.token_hex(8)
        question = _what_it_takes(ctx, settings, changes)
        codes[code] = action, now + _CODE_SECONDS
        for old in [known for known, (_, expires) in codes.items() if expires < now]:
            del codes[old]
        return {"confirmed": False, "question": question, "confirmation": code, "next": _NEXT}
    require(access.person, Action.START)
    expected, expires = codes.get(confirmation, ("", 0.0))
    if not answer.confirm and (expected != action or expires < now):
        raise RunError(
            f"{shorten(confirmation, 20)!r} confirms nothing, or something else.", "Call without it for another one."
        )
    _server(ctx).unload(access.workspace.store.owner)
    run = access.workspace.train(settings, changes, key=confirmation or None, wait=False)  # a second call starts none
    access.log("run started", run.id)
    return {"confirmed": True, "run_id": run.id, "state": run.state}


@_tool("run")
def stop_run(ctx: Context, run_id: RunId) -> dict[str, Any]:
    """Save what a run has learned so far, and stop it."""
    run = _run(ctx, run_id, Action.STOP)
    run.stop()
    _access(ctx).log("run stopped", run.id)
    return _figures(run)


@_tool("run")
def resume_run(ctx: Context, run_id: RunId) -> dict[str, Any]:
    """Continue a run that was stopped, interrupted or failed, from its newest checkpoint."""
    run = _run(ctx, run_id, Action.RESUME)
    run.resume()
    _access(ctx).log("run resumed", run.id)
    return _figures(run)


@_tool("run")
def evaluate_run(ctx: Context, run_id: RunId, max_rows: int = 200, answered_rows: int = 0) -> dict[str, Any]:
    """Measure base and tuned on the held-out rows; with `answered_rows`, both answer some of them. Takes minutes on a CPU."""
    run = _run(ctx, run_id, Action.EVALUATE)
    _server(ctx).unload(_access(ctx).workspace.store.owner)
    result = run.evaluate(on_progress=_progress(ctx), max_rows=max_rows, answered_rows=answered_rows)
    return result.model_dump(mode="json", exclude={"row_losses", "lists"}) | {
        "gained": result.gain,
        "forgot": result.forgetting,
    }


@_tool("run")
def chat(
    ctx: Context,
    run_id: RunId,
    prompt: str,
    branch: Branch | None = None,
    system: str = "",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
) -> dict[str, Any]:
    """Let a run answer: `tuned`, or `base`, the model without what was trained. It stays loaded for the next call."""
    run, server, owner = _run(ctx, run_id, Action.CHAT), _server(ctx), _access(ctx).workspace.store.owner
    known_id, loaded = server.chats.get(owner, ("", None))
    if loaded is None or known_id != run.id or not loaded.is_loaded:
        server.unload(owner)
        loaded = _access(ctx).workspace.chat(run.id, on_progress=_progress(ctx))
        server.chats[owner] = run.id, loaded
    messages = [*([Message("system", system)] if system else ()), Message("user", prompt)]
    text = loaded.answer(messages, branch, max_new_tokens=max_new_tokens, temperature=temperature)
    return {"answer": text, "branches": loaded.branches}


@_tool("run")
def export_run(ctx: Context, run_id: RunId, kind: ExportKind = "adapter") -> dict[str, Any]:
    """Write the result of a run as files below the exports of its home, and verify it."""
    run, home = _run(ctx, run_id, Action.EXPORT), _access(ctx).workspace.home
    _server(ctx).unload(_access(ctx).workspace.store.owner)
    result = run.export(home.exports / f"{run.id}-{kind}-{secrets.token_hex(2)}", kind, on_progress=_progress(ctx))
    _access(ctx).log("exported", run.id)
    return result.model_dump(mode="json")


def _figures_resource(ctx: Context, run_id: str) -> str:
    """Return the figures of a run."""
    return json.dumps(_figures(_run(ctx, run_id, Action.READ)))


def _curve_resource(ctx: Context, run_id: str) -> str:
    """List each logged step of a run: losses, learning rate, tokens, speed, memory."""
    return str(_run(ctx, run_id, Action.READ).events().to_csv(index=False))


def _report_resource(ctx: Context, run_id: str) -> str:
    """Describe what a run did and how it went."""
    run = _run(ctx, run_id, Action.READ)
    summary, findings = run.summary, "\n".join(f"- {finding.text}" for finding in run.findings())
    facts = f"{summary.method} of {summary.model} on {summary.dataset}: {summary.state}, {summary.steps:,} steps."
    return f"# {summary.label}\n\n{facts}\n\n{findings}\n\n```yaml\n{run.settings_text}```\n"


_RESOURCES: dict[str, tuple[Tool, str]] = {
    "": (_figures_resource, "application/json"),
    "/curve": (_curve_resource, "text/csv"),
    "/report": (_report_resource, "text/markdown"),
}
