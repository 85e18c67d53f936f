"""What one talks to: a run in any of its states, a folder, or a model as it is; and what stands beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import gradio as gr

from engine.chat.contract import AdapterChoice, Branch, ChatTarget
from engine.chat.target import list_checkpoints
from engine.config.model import ModelConfig, Quantization
from engine.errors import ModelError, RunError
from engine.paths import data_folders, typed_path
from engine.runs.run import Run
from ui.backend.run_reader import can_be_talked_to
from ui.components import Dropdown
from ui.page import Page
from ui.views.run_choice import run_choices

A_MODEL = "a-model"
A_FOLDER = "a-folder"
FINAL = "final"
NOTHING = ""
AS_TRAINED = "as trained"
FINAL_WORDS = "the final result"

_OTHERS = (("An adapter's folder", A_FOLDER), ("A model as it is", A_MODEL))
_PRECISIONS = (
    ("as it was trained", AS_TRAINED),
    ("16 bits", "none"),
    ("8 bits (int8)", "int8"),
    ("4 bits (nf4)", "nf4"),
)
_LONGEST_NAME = 1000


class Chosen(NamedTuple):
    """What the fields say; a browser's values, looked up before they are used."""

    run_id: str
    checkpoint: str | None
    model: str
    folder: str
    against: str
    precision: str


class ChatChoice:
    """Lays out the choice; the Chat tab wires it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Row(equal_height=False, elem_id="chat-choice"):
            self.run = Dropdown(
                list(_OTHERS), value=A_MODEL, label="Talk to", scale=3, min_width=260, elem_id="chat-run"
            )
            self.checkpoint = Dropdown(
                [(FINAL_WORDS, FINAL)], value=FINAL, label="Which state of it", scale=2, min_width=180,
                visible=False, elem_id="chat-checkpoint",
            )  # fmt: skip
            self.folder = gr.Textbox(
                label="Folder with the adapter", placeholder="/home/me/adapters/support", scale=3, min_width=240,
                max_lines=1, visible=False, elem_id="chat-folder",
            )  # fmt: skip
            self.model = gr.Textbox(
                label="Model", placeholder="smollm2-135m-instruct, owner/name, a folder …", scale=2, min_width=220,
                max_lines=1, elem_id="chat-model",
            )  # fmt: skip
        with gr.Row(equal_height=False, elem_id="chat-beside") as self.beside:
            self.against = Dropdown(
                [("its base alone", NOTHING)], value=NOTHING, label="Beside it", scale=3, min_width=260,
                visible=False, elem_id="chat-against",
            )  # fmt: skip
            self.precision = Dropdown(
                list(_PRECISIONS), value=AS_TRAINED, label="Load the frozen weights in", scale=2, min_width=180,
                elem_id="chat-precision",
            )  # fmt: skip

    @property
    def inputs(self) -> list[Any]:
        """In the order of `Chosen`."""
        return [self.run, self.checkpoint, self.model, self.folder, self.against, self.precision]

    @property
    def depending(self) -> list[Any]:
        """What changes with the run: as `choose` returns it."""
        return [self.checkpoint, self.model, self.folder, self.against]

    def offer(self, chosen_run: str, current: str, typed: str | None) -> tuple[Any, ...]:
        """Runs that can be talked to; the one that is being looked at is proposed."""
        choices = [*run_choices(self._page.reader.offered(can_be_talked_to, chosen_run, current)), *_OTHERS]
        ids = [value for _, value in choices]
        if current in (A_MODEL, A_FOLDER) and typed:
            return gr.update(choices=choices), *(gr.skip(),) * len(self.depending)
        proposed = next((run for run in (chosen_run, current) if run in ids and run not in (A_MODEL, A_FOLDER)), ids[0])
        if proposed == A_FOLDER:
            proposed = A_MODEL  # nobody has a run yet
        if proposed == current and current in ids:
            return gr.update(choices=choices), *(gr.skip(),) * len(self.depending)
        return gr.update(choices=choices, value=proposed), *self.choose(proposed)

    def choose(self, run_id: str) -> tuple[Any, ...]:
        """What can be asked further, once it is known what is talked to."""
        if run_id not in (A_MODEL, A_FOLDER) and self._page.reader.exists(run_id):
            states = self._states(run_id)
            value = states[0][1] if states else FINAL
            others = [("its base alone", NOTHING), *self._others(run_id)]
            return (
                gr.update(choices=states or [(FINAL_WORDS, FINAL)], value=value, visible=len(states) > 1),
                gr.update(visible=False),
                gr.update(visible=False),
                gr.update(choices=others, value=NOTHING, visible=len(others) > 1),
            )
        is_folder = run_id == A_FOLDER
        label = "Its base, if not the one it names" if is_folder else "Model"
        gone = gr.update(visible=False)
        return (
            gone,
            gr.update(visible=True, label=label),
            gr.update(visible=is_folder),
            gr.update(value=NOTHING, visible=False),
        )

    def run_of(self, run_id: str) -> Run:
        """The run that a browser named.

        Raises:
            RunError: If there is none.
        """
        if run_id in (A_MODEL, A_FOLDER, "") or not run_id:
            raise RunError("No run is chosen.", "Choose one above.")
        return self._page.services.runs.get(run_id)

    def target(self, chosen: Chosen) -> ChatTarget:
        """What is to be loaded.

        Raises:
            EngineError: If something is missing, or is not where a page may look.
        """
        quantization: Any = chosen.precision if chosen.precision in get_args(Quantization) else None
        model = (chosen.model or "").strip()
        if len(model) > _LONGEST_NAME:
            raise RunError("That is no model's name.", "Type a catalogue name, a Hub id or a folder.")
        if chosen.run_id == A_FOLDER:
            target = ChatTarget.of_run(_adapter_folder(chosen.folder))
            if model:
                target = target.model_copy(update={"model": ModelConfig(id=model)})
        elif chosen.run_id == A_MODEL:
            if not model:
                raise RunError("No model is named.", "Type a catalogue name, a Hub id or a folder.")
            target = ChatTarget.of_model(ModelConfig(id=model))
        else:
            target = ChatTarget.of_run(self.run_of(chosen.run_id).folder.path, _checkpoint(chosen.checkpoint))
            if chosen.against:
                other, _, checkpoint = chosen.against.partition("/")
                second = AdapterChoice(folder=self.run_of(other).folder.path, checkpoint=_checkpoint(checkpoint))
                target = target.model_copy(update={"second": second})
        return target.model_copy(update={"quantization": quantization})

    def names(self, target: ChatTarget | None) -> dict[Branch, str]:
        """What to call the branches of what is loaded."""
        names: dict[Branch, str] = {"base": "Base model", "tuned": "Tuned"}
        if target is None or target.second is None or target.tuned is None:
            return names
        titles: dict[Branch, str] = {
            "tuned": self._title(target.tuned, target.second),
            "second": self._title(target.second, target.tuned),
        }
        return names | titles

    def results(self, target: ChatTarget | None) -> tuple[str, ...]:
        """The runs and states whose results are loaded, in words; none where it is a model alone."""
        loaded = (
            [choice for choice in (target.tuned, target.second) if choice is not None] if target is not None else []
        )
        return tuple(
            self._run_title(choice) + (f", checkpoint {choice.checkpoint}" if choice.checkpoint else "")
            for choice in loaded
        )

    def _run_title(self, choice: AdapterChoice) -> str:
        run_id = choice.folder.name
        return self._page.reader.observe(run_id).title if self._page.reader.exists(run_id) else run_id

    def _title(self, choice: AdapterChoice, other: AdapterChoice) -> str:
        run_id, title = choice.folder.name, self._run_title(choice)
        if choice.folder == other.folder:
            return f"{title}, {choice.checkpoint or FINAL_WORDS}"
        if self._page.reader.exists(other.folder.name) and self._page.reader.observe(other.folder.name).title == title:
            return f"{title} · {run_id[-4:]}"
        return title

    def _states(self, run_id: str) -> list[tuple[str, str]]:
        observed = self._page.reader.observe(run_id)
        names = [(f"checkpoint {name}", name) for name in list_checkpoints(observed.run.folder.path)]
        return ([(FINAL_WORDS, FINAL)] if observed.has_adapter else []) + names

    def _others(self, run_id: str) -> list[tuple[str, str]]:
        """Other states of this run, then other runs on the same base."""
        reader = self._page.reader
        config = reader.observe(run_id).config
        own = [(f"this run, {words}", f"{run_id}/{value}") for words, value in self._states(run_id)[1:]]
        if config is None:
            return own
        found = []
        for label, other in run_choices(reader.offered(can_be_talked_to)):
            if other == run_id:
                continue
            their = reader.observe(other).config
            if their is not None and (their.model.id, their.model.revision) == (config.model.id, config.model.revision):
                states = self._states(other)
                found.append((label, f"{other}/{states[0][1] if states else FINAL}"))
        return own + found


def _checkpoint(name: str | None) -> str | None:
    return None if name in (None, "", FINAL) else name


def _adapter_folder(typed: str, roots: Sequence[Path] | None = None) -> Path:
    text = (typed or "").strip()
    if not text or len(text) > _LONGEST_NAME or "\0" in text:
        raise ModelError("No folder is named.", "Type the folder that holds adapter_config.json.")
    folder = typed_path(text).resolve()
    if not any(folder.is_relative_to(root) for root in (roots if roots is not None else data_folders())):
        raise ModelError(
            f"The page does not read {folder.name or text[:60]} there.",
            "Copy it below your home folder, or name its place in LORATORY_DATA.",
        )
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder.name}.", "Check the path.")
    return folder
