"""Objective: what a run optimizes, the settings of preference tuning, and the adapter that it starts from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from loratory.engine.config.derived_defaults import open_settings
from loratory.engine.config.objectives import OBJECTIVES, ROW_KINDS, SUPERVISED, Objective, objectives_for
from loratory.engine.config.presets import Preset, find_preset, list_presets
from loratory.engine.config.run import AdapterConfig, DatasetConfig
from loratory.engine.config.training import ObjectiveSettings
from loratory.engine.data.source import SAMPLE_PREFIX
from loratory.ui.backend.run_reader import has_adapter
from loratory.ui.components import QUICK, visible_if
from loratory.ui.draft import Draft
from loratory.ui.form import field_of, group_settings, label_of
from loratory.ui.gradio_internals import CheckboxGroup, Dropdown, Radio
from loratory.ui.page import Page
from loratory.ui.tabs.rewards import RewardsPart

_SETTINGS = [name for name in ObjectiveSettings.model_fields if name not in ("loss_type", "rewards")]
_Sections = dict[str, dict[str, Any]]
_BASE = ""  # the choice that starts from the base model
_MOST_ADAPTERS = 20  # adapters of earlier runs
_MOST_OF_PRESET = 0.75  # of its settings, in a form that it filled
_ROW_SETTINGS = ("source", "subset", "split", "revision", "format", "column_map", "role_map", "mix")
_PRESENTATION: dict[str, dict[str, Any]] = {
    "beta": {"elem_id": "beta"},
    "loss_weights": {"placeholder": "1, 0.2"}, "precompute_ref_log_probs": {"elem_id": "precompute"},
}  # fmt: skip


class ObjectivePart:
    """Lays out the objective; its settings are visible for the objectives that use them."""

    def __init__(self, page: Page) -> None:
        self.page = page
        form = page.form
        form.register("training.objective", Radio(list(OBJECTIVES), value=next(iter(OBJECTIVES)), visible=False))
        with gr.Column(elem_id="objective-part"):
            choices = [(objective.label, objective.name) for objective in OBJECTIVES.values()]
            with gr.Row():
                self.choice = Radio(
                    choices, value=choices[0][1], label=label_of("training.objective"), elem_id="objective",
                    info=SUPERVISED.help, min_width=300,
                )  # fmt: skip
                self.start = Dropdown(
                    [("Base model", _BASE)], value=_BASE, label="Start from", info=" ", elem_id="start-from", min_width=300,
                    visible=False,
                )  # fmt: skip
            form.show_problems_of("training.objective", self.choice)
            form.show_problems_of("adapter.warm_start", self.start)
            with gr.Accordion(
                "Objective settings", open=False, visible=False, elem_id="objective-settings"
            ) as settings:
                self.losses = CheckboxGroup(
                    [], value=[], label=label_of("training.loss_type"), info=field_of("training.loss_type").description,
                    elem_id="loss-type", visible=False,
                )  # fmt: skip
                form.register("training.loss_type", self.losses)
                settings_of = {
                    name: [setting for setting in _SETTINGS if setting in objective.settings]
                    for name, objective in OBJECTIVES.items()
                }
                for readers, names in group_settings(settings_of).items():
                    self._lay_out(readers, names)
            self.rewards = RewardsPart(page)
        page.on_draft(self.choice, _render_choice)
        page.on_draft(self.losses, _render_losses)
        page.on_draft(settings, lambda draft: visible_if(draft.objective is not SUPERVISED))
        page.on_draft(self.start, self.render_start)

    def _lay_out(self, readers: Sequence[str], names: Sequence[str]) -> None:
        with gr.Row(visible=False) as row:
            for name in names:
                self.page.form.setting(f"training.{name}", min_width=200, **_PRESENTATION.get(name, {}))
        self.page.on_draft(row, lambda draft: visible_if(draft.objective.name in readers))

    def wire(self) -> None:
        """Connect the events."""
        page, form = self.page, self.page.form
        objective, losses = form["training.objective"], form["training.loss_type"]
        weights = form["training.loss_weights"]
        inputs, outputs = [self.choice, losses, weights], [objective, losses, weights]
        page.refresh_after(self.choice.input(_choose, inputs, outputs, **QUICK))
        page.change_on(self.start.input, self.start_from, self.start, undo=True)
        self.rewards.wire()

    def render_start(self, draft: Draft) -> Any:
        """Return the adapters of earlier runs on the same model; the base itself is always offered."""
        chosen = str(draft.mapping["adapter"].get("warm_start") or _BASE)
        objective = draft.objective
        if objective is SUPERVISED:
            return gr.update(visible=False)
        model = str(draft.mapping["model"].get("id") or "")
        rows = [row for row in self.page.reader.glance().rows if model and row.model in (model, Path(model).name)]
        adapters = [row for row in rows if has_adapter(self.page.services.runs.get(row.id))][:_MOST_ADAPTERS]
        choices = [("Base model, no adapter", _BASE)]
        choices += [(f"{row.label} · {row.method}", row.id) for row in adapters]
        if chosen not in {value for _, value in choices}:
            choices.append((self.page.start_label(draft) or chosen, chosen))
        info = "The adapter of an earlier run; the new one has the same shape."
        if objective.has_reference:
            info += " It is also the reference model."
        return gr.update(choices=choices, value=chosen, info=info, visible=True)

    def start_from(self, run_id: str) -> dict[str, Any]:
        """Return the settings that start from a run's adapter, including its fixed shape."""
        if not run_id:
            return {"adapter": {"warm_start": None}}
        config = self.page.services.runs.get(run_id).folder.read_config()
        adapter = config.adapter.model_dump(mode="json")
        return {"adapter": {**adapter, "warm_start": run_id}}

    def with_start(self, preset: Preset) -> dict[str, Any]:
        """Return a preset's values; one that continues another starts from its result, if there is one."""
        mapping = preset.mapping()
        if preset.starts_from:
            before = find_preset(preset.starts_from)
            config = before.load()
            run = self.page.reader.newest_of(config, open_settings(config), condition=has_adapter)
            if run is not None:
                mapping["adapter"] = {**mapping.get("adapter", {}), "warm_start": run.id}
            else:
                note = f"Made to continue from “{before.title}”, which has not been trained here yet."
                mapping["page"] = {"note": note}
        return mapping


def with_preset(settings: _Sections, changes: Mapping[str, Mapping[str, Any]], *, keeps_dataset: bool) -> _Sections:
    """Return settings with a preset's, without what belongs to what it replaces; `keeps_dataset` that a person chose."""
    if keeps_dataset and _is_own_dataset(settings["dataset"]):
        changes = {**changes, "dataset": {}, "page": {"note": "Your dataset stays."}}
    model, adapter, dataset = (changes.get(section, {}) for section in ("model", "adapter", "dataset"))
    left_out = ["adapter.warm_start"] if model or adapter else []
    if model.get("id") not in (None, settings["model"].get("id")):
        left_out += ["model.revision", "adapter.target_modules"]
    if "source" in dataset:
        left_out += [f"dataset.{name}" for name in _ROW_SETTINGS]
        left_out += [f"training.{name}" for name in ("objective", *ObjectiveSettings.model_fields)]
    if model:
        left_out += [name for name in _settings_of_presets(settings) if dataset or not name.startswith("dataset.")]
    for section, _, name in (setting.partition(".") for setting in left_out):
        settings[section].pop(name, None)
    if "method" in adapter:
        settings["adapter"] |= AdapterConfig.model_construct(**settings["adapter"]).changes_for(adapter["method"])
    return {name: {**settings.get(name, {}), **changes.get(name, {})} for name in {**settings, **changes}}


def _settings_of_presets(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what an earlier preset set, if most of it is still as it set it."""
    names = []
    for preset in list_presets():
        entries = [(section, *item) for section, values in preset.mapping().items() for item in values.items()]
        equal_names = [
            f"{section}.{name}" for section, name, value in entries if settings.get(section, {}).get(name) == value
        ]
        names += equal_names if len(equal_names) >= _MOST_OF_PRESET * len(entries) else []
    return names


def _is_own_dataset(dataset: Mapping[str, Any]) -> bool:
    """Return whether a person chose a dataset: not a sample as it comes, nor that of a preset."""

    def rows_of(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {name: settings[name] for name in _ROW_SETTINGS if settings.get(name) not in (None, default[name])}

    default = DatasetConfig.model_construct(source="").model_dump()
    rows, presets = rows_of(dataset), list_presets()
    sample_rows = ({"source": rows.get("source")},) if str(rows.get("source", "")).startswith(SAMPLE_PREFIX) else ()
    return bool(rows) and rows not in (*sample_rows, *(rows_of(preset.mapping()["dataset"]) for preset in presets))


def _objectives_for(draft: Draft) -> list[Objective]:
    """Return the objectives that fit the rows, and the chosen one; all of them before the rows are known."""
    if draft.kind is None:
        return list(OBJECTIVES.values())
    fitting = objectives_for(draft.kind)
    return [objective for objective in OBJECTIVES.values() if objective in fitting or objective is draft.objective]


def _render_choice(draft: Draft) -> Any:
    objectives, current = _objectives_for(draft), draft.objective
    info = current.help
    # The rows that the other objectives need.
    for kind, traits in ROW_KINDS.items() if not current.learns_preferences else ():
        names = [other.label for other in OBJECTIVES.values() if kind in other.rows and other not in objectives]
        if names:
            info += f" {' and '.join(names)} {'needs' if len(names) == 1 else 'need'} {traits.content}."
    choices = [(objective.label, objective.name) for objective in objectives]
    return gr.update(choices=choices, value=current.name, info=info)


def _render_losses(draft: Draft) -> Any:
    objective, chosen = draft.objective, draft.mapping["training"].get("loss_type") or []
    names = [*objective.losses, *(name for name in chosen if name not in objective.losses)]
    return gr.update(choices=names, visible=bool(names))


def _choose(name: str, losses: Sequence[str], weights: str) -> tuple[str, Sequence[str], str]:
    """Return the objective after a choice, with its losses and their weights."""
    names = OBJECTIVES[name].losses
    choices = [loss for loss in losses or () if loss in names]
    return name, choices, weights if len(choices) == len(losses or ()) else ""
