"""What chat and blind test share: the choice of the model and what it is compared with, system prompt and sampling."""

from pathlib import Path
from typing import Any, NamedTuple, get_args

import gradio as gr

from loratory.engine.accounts.people import Action
from loratory.engine.chat.contract import AdapterChoice, Branch, ChatState, ChatTarget
from loratory.engine.chat.target import list_checkpoints
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import ModelConfig, Quantization, RunConfig
from loratory.engine.errors import EngineError, ModelError, RunError
from loratory.engine.evaluation.votes import AnswerModel
from loratory.engine.paths import AllowedPaths, data_folders, typed_path
from loratory.engine.runs.names import run_label
from loratory.engine.runs.provenance import read_provenance, start_of
from loratory.engine.runs.run import Run, RunFolder
from loratory.ui.backend.conversation import BRANCH_WORDS
from loratory.ui.backend.run_reader import FINAL, FINAL_WORDS, RunReader, RunSnapshot, can_chat, has_adapter
from loratory.ui.components import HIDDEN, Updates, visible_if
from loratory.ui.gradio_internals import Dropdown
from loratory.ui.page import Page
from loratory.ui.tabs.run_place import chosen_place, work_place
from loratory.ui.views.html import short_name
from loratory.ui.views.run_view import run_choices

A_MODEL = "a-model"
A_FOLDER = "a-folder"
NOTHING = ""
START = "start"  # the adapter that the run started from
AS_TRAINED = "as trained"

_WITHOUT_RUN = (("Adapter folder", A_FOLDER), ("Base model", A_MODEL))
_PRECISIONS = (
    ("same as in training", AS_TRAINED),
    ("16 bits", "none"),
    ("8 bits (int8)", "int8"),
    ("4 bits (nf4)", "nf4"),
)
_BASE = ("base model", NOTHING)
_LONGEST_NAME = 1000


class Chosen(NamedTuple):
    """Values of the fields, from an untrusted browser; look them up before use."""

    run_id: str
    checkpoint: str | None
    model: str
    folder: str
    against: str
    precision: str
    where: str = "local"


def checkpoint_choices(snapshot: RunSnapshot) -> list[tuple[str, str]]:
    """Return labels and names of a run's final result and checkpoints, for a dropdown."""
    names = [(f"checkpoint {name}", name) for name in list_checkpoints(snapshot.run.folder.path)]
    return names if names and not has_adapter(snapshot.run) else [(FINAL_WORDS, FINAL), *names]


def offered_runs(reader: RunReader, *first_choices: str | None) -> tuple[list[tuple[str, str]], str | None]:
    """Return labels and ids of runs with a result, and the default: the first choice that exists, else the newest."""
    choices = run_choices(reader.newest_where(can_chat, *first_choices))
    ids = [run_id for _, run_id in choices]
    return choices, next((run for run in (*first_choices, *ids) if run in ids), None)


def checkpoint_of(chosen: str | None) -> str | None:
    """Return the name of a chosen checkpoint; None for the final result."""
    return None if chosen in (None, "", FINAL) else chosen


class ChatChoice:
    """Lays out the choice; the Chat tab wires it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Row(equal_height=False, elem_id="chat-choice") as self.panel:
            self.run = Dropdown(
                list(_WITHOUT_RUN), value=A_MODEL, label="Run or model", scale=3, min_width=260, elem_id="chat-run"
            )
            self.checkpoint = Dropdown(
                [(FINAL_WORDS, FINAL)], value=FINAL, label="Checkpoint", scale=2, min_width=180, visible=False,
                elem_id="chat-checkpoint",
            )  # fmt: skip
            self.folder = gr.Textbox(
                label="Adapter folder", placeholder="/home/me/adapters/support", scale=3, min_width=240, max_lines=1,
                visible=False, elem_id="chat-folder",
            )  # fmt: skip
            self.model = gr.Textbox(
                label="Model", placeholder="smollm2-135m-instruct, owner/name, a folder …", scale=2, min_width=220,
                max_lines=1, elem_id="chat-model",
            )  # fmt: skip
        with gr.Row(equal_height=False, elem_id="chat-beside") as self.comparing:
            self.against = Dropdown(
                [_BASE], value=NOTHING, label="Compare with", scale=3, min_width=260, visible=False,
                elem_id="chat-against",
            )  # fmt: skip
            self.precision = Dropdown(
                list(_PRECISIONS), value=AS_TRAINED, label="Base precision", scale=2, min_width=180,
                elem_id="chat-precision",
            )  # fmt: skip
        self.where = work_place(page.services, elem_id="chat-where")
        # In the order of `Chosen`.
        self.inputs = [self.run, self.checkpoint, self.model, self.folder, self.against, self.precision, self.where]
        # What `offer` and `choose` change.
        self.outputs = [self.run, self.checkpoint, self.model, self.folder, self.against]

    def offer(self, chosen_run: str, current: str, text: str | None, checkpoint: str = FINAL) -> Updates:
        """Return the runs that can be loaded; the chosen one is preselected, with a checkpoint that it has."""
        runs, run_id = offered_runs(self.page.reader, chosen_run, current)
        shared = self._shared_choices()
        run_id = chosen_run if any(name == chosen_run for _, name in shared) else run_id
        choices, proposal = [*runs, *shared, *_WITHOUT_RUN], run_id or A_MODEL
        stays = (current in (A_MODEL, A_FOLDER) and text) or proposal == current
        if stays:
            return {self.run: gr.update(choices=choices)}
        return {self.run: gr.update(choices=choices, value=proposal), **self.choose(proposal, checkpoint)}

    def choose(self, run_id: str, checkpoint: str = FINAL) -> Updates:
        """Return the other fields, which depend on the run."""
        shared = self._observe_shared(run_id)
        if run_id in (A_MODEL, A_FOLDER) or (shared is None and not self.page.reader.exists(run_id)):
            is_folder = run_id == A_FOLDER
            label = "Base model, if not the adapter's own" if is_folder else "Model"
            return {
                self.checkpoint: HIDDEN,
                self.model: gr.update(visible=True, label=label),
                self.folder: visible_if(is_folder),
                self.against: gr.update(value=NOTHING, visible=False),
            }
        states = checkpoint_choices(shared or self.page.reader.observe(run_id))
        chosen = next((name for _, name in states if name == checkpoint), states[0][1])
        others, against = [_BASE], NOTHING
        if shared is None:
            start, learns = self._start(run_id)
            if start is not None:
                others.append((f"base model and its start, {self._run_title(start)}", START))
                against = START if learns else NOTHING
            others += self._others(run_id)
        return {
            self.checkpoint: gr.update(choices=states, value=chosen, visible=len(states) > 1),
            self.model: HIDDEN,
            self.folder: HIDDEN,
            self.against: gr.update(choices=others, value=against, visible=len(others) > 1),
        }

    def run_of(self, run_id: str) -> Run:
        """Look up a run by an untrusted id.

        Raises:
            RunError: If there is none.
        """
        if run_id in (A_MODEL, A_FOLDER, "") or not run_id:
            raise RunError("No run is chosen.", "Choose one above.")
        return self.page.services.runs.get(run_id)

    def _run_to_chat(self, name: str) -> Run:
        """Return an own run, or a shared one that may be used for chat."""
        shared = self.page.shared
        return self.run_of(name) if shared is None or "/" not in (name or "") else shared.open(name, Action.CHAT)

    def _observe_shared(self, name: str) -> RunSnapshot | None:
        shared = self.page.shared
        if shared is None or "/" not in (name or ""):
            return None
        try:
            return shared.observe(name, Action.CHAT)
        except EngineError:
            return None

    def _shared_choices(self) -> list[tuple[str, str]]:
        rows = self.page.shared.rows() if self.page.shared is not None else []
        # Runs that are not shared are not read, even for admins; the state shows whether there is a result.
        candidates = [row for row in rows if row.method and row.state in ("completed", "stopped")]
        return [(f"{row.label} · {row.owner}", row.id) for row in candidates]

    def _adapter_folder(self, text: str) -> Path:
        paths = AllowedPaths.for_home(self.page.services.home)
        return _local_folder(text) if paths is None else paths.read(text or "", ModelError)

    def target(self, chosen: Chosen) -> ChatTarget:
        """Return the target to load.

        Raises:
            EngineError: If a field is empty, or a path is missing or not allowed.
        """
        quantization: Any = chosen.precision if chosen.precision in get_args(Quantization) else None
        model = (chosen.model or "").strip()
        if len(model) > _LONGEST_NAME:
            raise RunError("That is not the name of a model.", "Type a catalogue name, a Hub id or a folder.")
        if chosen.run_id == A_FOLDER:
            target = ChatTarget.of_run(self._adapter_folder(chosen.folder))
            if model:
                target = target.model_copy(update={"model": ModelConfig(id=model)})
        elif chosen.run_id == A_MODEL:
            if not model:
                raise RunError("No model is named.", "Type a catalogue name, a Hub id or a folder.")
            target = ChatTarget.of_model(ModelConfig(id=model))
        else:
            target = ChatTarget.of_run(self._run_to_chat(chosen.run_id).folder.path, checkpoint_of(chosen.checkpoint))
            if chosen.against == START:
                target = target.model_copy(update={"second": self._start(chosen.run_id)[0]})
            elif chosen.against:
                other, _, checkpoint = chosen.against.partition("/")
                second = AdapterChoice(folder=self.run_of(other).folder.path, checkpoint=checkpoint_of(checkpoint))
                target = target.model_copy(update={"second": second})
        return target.model_copy(update={"quantization": quantization, "where": chosen_place(chosen.where)})

    def _own(self, run_id: str) -> RunSnapshot | None:
        """Observe a run of the user; None if there is none of that id."""
        return self.page.reader.observe(run_id) if self.page.reader.exists(run_id) else None

    def _start(self, run_id: str) -> tuple[AdapterChoice | None, bool]:
        """Return the adapter that an own run started from, and whether it trained on preferences."""
        snapshot = self._own(run_id)
        if snapshot is None or snapshot.config is None:
            return None, False
        services = self.page.services
        home = services.home if services.home.owner else None
        folder = start_of(snapshot.config, snapshot.run.folder.path.parent, home)
        learns = objective_of(snapshot.config).learns_preferences
        return AdapterChoice(folder=folder) if folder is not None else None, learns

    def compares_with_start(self, target: ChatTarget | None) -> bool:
        """Return whether a run is compared with the adapter that it started from."""
        if target is None or target.tuned is None or target.second is None:
            return False
        return target.second == self._start(target.tuned.folder.name)[0]

    def loaded_run(self, target: ChatTarget | None) -> RunSnapshot | None:
        """Return the loaded run; None unless it is the user's own."""
        return self._own(target.tuned.folder.name) if target is not None and target.tuned is not None else None

    def config_of(self, target: ChatTarget | None) -> RunConfig | None:
        """Return the loaded run's configuration; None unless it is the user's own run."""
        snapshot = self.loaded_run(target)
        return snapshot.config if snapshot is not None else None

    def names(self, target: ChatTarget | None) -> dict[Branch, str]:
        """Return the names of the branches that are loaded."""
        names: dict[Branch, str] = {"base": "Base model", "tuned": "Tuned"}
        if target is None or target.second is None or target.tuned is None:
            return names
        if self.compares_with_start(target):
            names["second"] = f"{self._kind(target.second)}: {self._run_title(target.second)}"
            names["tuned"] = f"{self._kind(target.tuned)}: {self._run_title(target.tuned)}"
            return names
        names["tuned"] = self._title(target.tuned, target.second)
        names["second"] = self._title(target.second, target.tuned)
        return names

    def answer_models(self) -> dict[Branch, AnswerModel]:
        """Return the model of each loaded branch, as votes store it, without paths of this machine."""
        state = self.page.services.chat.state
        model, target = state.model, state.target
        if model is None or target is None:
            return {}
        config = self.config_of(target)
        base = target.model or (config.model if config is not None else None)
        names = {**BRANCH_WORDS, **self.names(target)}
        adapters = {"tuned": target.tuned, "second": target.second}

        def model_of(branch: Branch) -> AnswerModel:
            choice = adapters.get(branch)
            return AnswerModel(
                name=names[branch],
                base=short_name(model.name) if Path(model.name).is_absolute() else model.name,
                revision=base.revision if base is not None else None,
                quantization=model.quantization,
                run=choice.folder.name if choice is not None else "",
                checkpoint=choice.checkpoint or "" if choice is not None else "",
            )

        return {branch: model_of(branch) for branch in model.branches}

    def title_of(self, name: str) -> str:
        """Return the title of a run by its id; the name itself, without folders, where it is not a run of the user."""
        snapshot = self._own(name)
        return (snapshot.title if snapshot is not None else "") or short_name(name)

    def results(self, target: ChatTarget | None) -> tuple[str, ...]:
        """Return the titles of the loaded runs and checkpoints; empty for a base model."""
        choices = (target.tuned, target.second) if target is not None else ()
        return tuple(
            self._run_title(choice) + (f", checkpoint {choice.checkpoint}" if choice.checkpoint else "")
            for choice in choices
            if choice is not None
        )

    def line(self, state: ChatState) -> str:
        """Return the loaded models in one line, for the fold of their choice; empty without one."""
        if state.model is None:
            return ""
        names = {**self.names(state.target), "base": f"base {short_name(state.model.name)}"}
        if "second" not in state.model.branches:
            names["tuned"] = f"tuned of {' and '.join(self.results(state.target))}"
        line = " · ".join(names[branch] for branch in reversed(state.model.branches))
        return f"{line[:1].upper()}{line[1:]} · Change"

    def _kind(self, choice: AdapterChoice) -> str:
        return "Preferred" if self._start(choice.folder.name)[1] else "Supervised"

    def _run_title(self, choice: AdapterChoice) -> str:
        snapshot = self._own(choice.folder.name)
        title = snapshot.title if snapshot is not None else read_provenance(RunFolder(choice.folder)).title
        return title or choice.folder.name

    def _title(self, choice: AdapterChoice, other: AdapterChoice) -> str:
        title = self._run_title(choice)
        if choice.folder == other.folder:
            return f"{title}, {choice.checkpoint or FINAL_WORDS}"
        return run_label(title, choice.folder.name) if self._run_title(other) == title else title

    def _others(self, run_id: str) -> list[tuple[str, str]]:
        """Return other checkpoints of this run, then other runs on the same base model."""
        reader = self.page.reader
        snapshot = reader.observe(run_id)
        config = snapshot.config
        own = [(f"this run, {label}", f"{run_id}/{value}") for label, value in checkpoint_choices(snapshot)[1:]]
        if config is None:
            return own
        others = []
        for label, other in run_choices(reader.newest_where(can_chat)):
            theirs = reader.observe(other)
            model = theirs.config.model if other != run_id and theirs.config is not None else None
            if model is not None and (model.id, model.revision) == (config.model.id, config.model.revision):
                others.append((label, f"{other}/{checkpoint_choices(theirs)[0][1]}"))
        return own + others


def _local_folder(typed: str) -> Path:
    text = (typed or "").strip()
    if not text or len(text) > _LONGEST_NAME or "\0" in text:
        raise ModelError("No folder given.", "Type the folder that holds adapter_config.json.")
    folder = typed_path(text).resolve()
    roots = data_folders()
    if not any(folder.is_relative_to(root) for root in roots):
        names = ", ".join(map(str, roots))
        raise ModelError(
            f"{folder.name or text[:60]} is outside the folders that the page reads: {names}.",
            "Copy it below one of them, or add the folder that holds it to LORATORY_DATA.",
        )
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder.name}.", "Check the path.")
    return folder
