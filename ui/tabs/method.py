"""Method: the PEFT method, its settings, and the memory that each method needs for this model."""

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from loratory.engine.config.constraints import DISTRIBUTIONS, DistributionName, distribution_of
from loratory.engine.config.load import change_of
from loratory.engine.config.methods.base import FOUR_BIT
from loratory.engine.config.methods.registry import DEFAULT_METHOD, METHODS
from loratory.engine.config.run import AdapterConfig
from loratory.engine.memory import compare
from loratory.engine.memory.estimate import Estimator, Verdict
from loratory.ui.components import QUICK, nothing, pick_list, picked_value, visible_if
from loratory.ui.draft import Draft
from loratory.ui.form import ALL_LINEAR, EVERY_LAYER, field_of, group_settings
from loratory.ui.gradio_internals import CheckboxGroup, Radio
from loratory.ui.page import Page
from loratory.ui.views.html import Column, Row, gib, pick_button, pickable, table, under
from loratory.ui.views.memory import MARKS, VERDICTS

# How far the sliders go; larger values can be typed.
_PRESENTATION: dict[str, dict[str, Any]] = {
    "r": {"maximum": 256, "elem_id": "rank"}, "lora_alpha": {"maximum": 512}, "lora_dropout": {"maximum": 0.5},
    "num_virtual_tokens": {"maximum": 256},
}  # fmt: skip
# Settings that a change of method may change, because methods have other defaults for them.
_SHARED_DEFAULTS = sorted({name for method in METHODS.values() for name in method.defaults})
_FITS: dict[Verdict | None, str] = {
    None: "–",
    **{verdict: f'<span class="{mark}">{mark}</span>' for verdict, mark in MARKS.items()},
}

# Gradio clamps a rank beyond the slider's end when its box loses focus.
_ALPHA_OF_RANK = """(r, linked, alpha) =>
  linked && r ? 2 * Math.min(r, document.querySelector("#rank input[type=range]")?.max ?? r) : alpha"""


class _Choice(NamedTuple):
    """One entry of the list of methods."""

    method: str
    help: str
    four_bit: bool = False  # the name promises four bits


_CHOICES: dict[str, _Choice] = {}
for _traits in METHODS.values():
    _CHOICES[_traits.label] = _Choice(_traits.name, _traits.help)
    if _traits.four_bit_label:
        _CHOICES[_traits.four_bit_label] = _Choice(_traits.name, _traits.four_bit_help, four_bit=True)


def _field_groups(*, advanced: bool) -> dict[tuple[str, ...], list[str]]:
    """Return the settings of methods, grouped by the methods that use them."""
    is_advanced = {name for method in METHODS.values() for name in method.advanced}
    settings_of = {
        name: [field for field in method.fields if (field in is_advanced) == advanced]
        for name, method in METHODS.items()
    }
    return group_settings(settings_of)


class MethodTab:
    """Lays out the Method tab; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page) -> None:
        self.page = page
        form = page.form
        self.lead = gr.HTML(f'<h2>Method</h2><p class="lead">{DEFAULT_METHOD.help}</p>')
        self.choice = Radio(list(_CHOICES), value=DEFAULT_METHOD.label, show_label=False, elem_id="method-choice")
        form.register("adapter.method", Radio(list(METHODS), value=DEFAULT_METHOD.name, visible=False))
        form.show_problems_of("adapter.method", self.choice)
        form.register("adapter.warm_start", gr.State(None))
        self.warm_start = pick_list(elem_id="begins-with")
        self.link_alpha = gr.Checkbox(True, label="Keep alpha at twice the rank", container=False, render=False)
        for methods, fields in _field_groups(advanced=False).items():
            self._lay_out(methods, fields)
        form.setting("model.quantization", elem_id="quantization")
        for part in ("tower", "projector"):
            page.image_setting(f"vision.{part}", elem_id=f"vision-{part}")
        self.trainable = gr.HTML(elem_id="trainable")
        with gr.Accordion("Advanced", open=False, elem_id="more-method"):
            for methods, fields in _field_groups(advanced=True).items():
                self._lay_out(methods, fields)
            form.setting("model.double_quant")
            with gr.Row():
                form.setting("model.compute_dtype")
                form.setting("model.attn_implementation")
        self.table = pick_list(elem_id="method-table")
        # The quantization that was set by hand; one that came with a method leaves with it.
        self._set_quantization = gr.Textbox("", visible=False)
        page.on_fill(self._set_quantization, lambda _: "")
        page.on_draft(self.trainable, render_trainable)
        page.on_draft(self.lead, render_lead)
        page.on_draft(self.choice, method_choice)
        page.on_draft(self.warm_start, lambda draft: render_warm_start(page.start_label(draft)))
        page.on_fill(self.link_alpha, is_linked)
        page.on_draft_later(self.table, render_method_table)

    def _lay_out(self, methods: Sequence[str], fields: Sequence[str]) -> None:
        """Place the settings of one group; they are visible for the methods that use them."""
        # Browsers go through all components for each event, so no component is for layout alone.
        with gr.Row(visible=DEFAULT_METHOD.name in methods) as row:
            for name in fields:
                if name == "target_modules":
                    targets = CheckboxGroup(
                        EVERY_LAYER, value=[ALL_LINEAR], label="Target modules (target_modules)",
                        info="The model's linear layers, without the output head.", elem_id="targets",
                    )  # fmt: skip
                    self.page.form.register("adapter.target_modules", targets)
                elif name == "lora_alpha":
                    with gr.Column(min_width=160):
                        self.page.form.setting(f"adapter.{name}", **_PRESENTATION[name])
                        self.link_alpha.render()
                else:
                    self.page.form.setting(f"adapter.{name}", min_width=160, **_PRESENTATION.get(name, {}))
        self.page.on_draft(row, lambda draft: visible_if(_method(draft) in methods))

    def wire(self) -> None:
        """Connect the events."""
        page, form = self.page, self.page.form
        method, quantization = form["adapter.method"], form["model.quantization"]
        rank, alpha, start = form["adapter.r"], form["adapter.lora_alpha"], form["adapter.warm_start"]
        shared = [form[f"adapter.{name}"] for name in _SHARED_DEFAULTS]
        settings = [self._set_quantization, quantization, method, *shared]
        page.refresh_after(self.choice.input(_settings_of_choice, [self.choice, *settings], settings, **QUICK))
        quantization.input(None, quantization, self._set_quantization, js="(value) => value", **QUICK)
        page.refresh_after(self.warm_start.click(lambda: None, None, start, **QUICK))
        # In the browser alone: an alpha that a server answers would be put over one that was typed meanwhile.
        inputs = [rank, self.link_alpha, alpha]
        page.refresh_after(gr.on([rank.input, self.link_alpha.input], None, inputs, alpha, js=_ALPHA_OF_RANK, **QUICK))
        # Gradio clamps a rank beyond the slider's end just after its box loses focus, with this event.
        page.refresh_after(rank.release(nothing, None, None, **QUICK))
        is_twice = "(r, alpha) => alpha === 2 * r"
        gr.on([alpha.input, alpha.release], None, [rank, alpha], self.link_alpha, js=is_twice, **QUICK)
        page.change_on(self.table.click, self._use_row, form.components, undo=True)

    def _use_row(self, event: gr.EventData, *values: Any) -> dict[str, Any]:
        return change_of_row(self.page.draft(values), picked_value(event))


def change_of_row(draft: Draft, row: str) -> dict[str, dict[str, Any]]:
    """Return the changes of a picked row, by section: a method, or a way to share this machine's GPUs."""
    methods = (need.overrides for need in _needs(draft) if need.method == row)
    ways = (compare.as_overrides(way.changes(draft.gpus)) for way in DISTRIBUTIONS.values() if way.label == row)
    overrides = next(itertools.chain(methods, ways if len(draft.gpus) > 1 else ()), ())
    return change_of(overrides) if overrides else {}


def is_linked(mapping: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether alpha is twice the rank; users can untick it to change one alone."""
    adapter = {"r": field_of("adapter.r").default, "lora_alpha": field_of("adapter.lora_alpha").default}
    adapter |= mapping.get("adapter", {})
    return bool(adapter["lora_alpha"] == 2 * adapter["r"])


def _next_step(draft: Draft) -> str:
    if draft.shape is not None:
        return "Correct the settings first."
    if draft.mapping["model"].get("id"):
        return "The model is being looked up, or could not be read; see the Model tab."
    return "Choose a model first."


def _method(draft: Draft) -> str:
    return str(draft.mapping["adapter"].get("method", DEFAULT_METHOD.name))


def method_choice(draft: Draft) -> str:
    """Return the entry of the list of methods that describes the draft."""
    method = METHODS[_method(draft)]
    in_four_bits = draft.mapping["model"].get("quantization") in FOUR_BIT
    return method.four_bit_label if in_four_bits and method.four_bit_label else method.label


def _settings_of_choice(choice: str, set_by_hand: str, quantization: str, former: str, *shared: Any) -> list[Any]:
    """Return the quantization set by hand, quantization, method and shared settings after a choice; set values stay."""
    chosen, in_four_bits = _CHOICES[choice], quantization in FOUR_BIT
    method = METHODS[chosen.method]
    came_with_method = METHODS[former].four_bit_label and in_four_bits and set_by_hand != quantization
    if chosen.four_bit:
        quantization = quantization if in_four_bits else FOUR_BIT[0]
    elif quantization not in method.quantization or came_with_method or (method.four_bit_label and in_four_bits):
        quantization = "none"
    set_by_hand = quantization if set_by_hand == quantization else ""
    values = dict(zip(_SHARED_DEFAULTS, shared, strict=True))
    changes = AdapterConfig.model_construct(method=former, **values).changes_for(method.name)
    return [set_by_hand, quantization, method.name, *(changes.get(name, value) for name, value in values.items())]


def render_lead(draft: Draft) -> str:
    """Return the heading, and one sentence on the chosen method."""
    return f'<h2>Method</h2><p class="lead">{_CHOICES[method_choice(draft)].help}</p>'


def render_warm_start(label: str) -> str:
    """Return what the draft continues from, with a remove button; empty for a new adapter."""
    if not label:
        return ""
    remove = pick_button("out", "Start a new adapter")
    return f'<div class="sentence">Continues from {escape(label)}. Method, rank and alpha must stay the same. {remove}</div>'


def render_trainable(draft: Draft) -> str:
    """Return the number of trainable parameters, as PEFT counts them."""
    estimate = draft.estimate or draft.device_memory.estimate
    if estimate is None:
        return f'<div class="sentence">Trainable parameters: <span class="lead">{_next_step(draft)}</span></div>'
    parameters = estimate.parameters
    percent = parameters.trainable_percent
    share = f"{percent:.2f}" if percent >= 0.1 else f"{percent:.4f}"
    return (
        f'<div class="sentence">Trains <b>{parameters.trainable:,}</b> of {parameters.total:,} parameters, '
        f"<b>{share}%</b></div>"
    )


def _needs(draft: Draft) -> tuple[compare.MethodNeed, ...]:
    device, config = draft.device_memory.device, draft.config or draft.memory_config
    if draft.shape is None or device is None or config is None:
        return ()
    return compare.compare_methods(draft.shape, config, device, draft.rows)


def render_method_table(draft: Draft) -> str:
    """Return the memory table of all methods for this model; rows can be picked."""
    head = "<h2>Memory by method</h2>"
    needs, config, device = _needs(draft), draft.config or draft.memory_config, draft.device_memory.device
    if not needs or device is None or config is None:
        return f'{head}<div class="empty">{_next_step(draft)} Every method is then compared for your device.</div>'
    training = config.training
    checkpointing = "with" if training.gradient_checkpointing else "without"
    columns = [
        Column("Method"), *map(Column.of_numbers, ("Trains", "Needs, GiB")),
        Column(f"Of {gib(device.free_bytes)} GiB free on {escape(device.name)}", "against"),
    ]  # fmt: skip
    largest = max(device.free_bytes, *(need.needed_bytes or 0 for need in needs))
    return (
        f'{head}<p class="lead">{"For your rows, at most" if draft.rows is not None else "At"} {training.max_length:,} tokens, batch {training.per_device_train_batch_size}, '
        f"{checkpointing} gradient checkpointing unless noted. Pick a row to use it.</p>"
        f"{table(columns, (_need(need, largest, device.free_bytes) for need in needs))}{_render_shares_of(draft)}"
    )


def _need(need: compare.MethodNeed, largest_bytes: int, free_bytes: int) -> Row:
    """Return a row with a bar of the needed memory, of which `largest_bytes` is the whole length."""
    bar = f'<span class="soft">{escape(need.why_not)}</span>'
    if need.needed_bytes is not None:
        width, free = (100 * size_bytes / largest_bytes for size_bytes in (need.needed_bytes, free_bytes))
        bar = (
            f'<span class="bar need" role="img" aria-label="{VERDICTS[need.verdict or "fits"]}"><span style="width:{width:.1f}%">'
            f'</span><em class="free" style="left:{free:.1f}%"></em></span>{"" if need.verdict == "fits" else _FITS[need.verdict]}'
        )
    cells = (
        escape(need.method),
        f"{need.trainable:,}" if need.trainable else "–",
        gib(need.needed_bytes) if need.needed_bytes is not None else "–",
        bar,
    )
    return Row(cells, pickable(need.method, chosen=need.is_current) if need.overrides else 'class="soft"')


def _render_shares_of(draft: Draft) -> str:
    """Return the memory per GPU for training on all of them; empty with one GPU or for other devices."""
    device, config = draft.device_memory.device, draft.memory_config
    if len(draft.gpus) < 2 or draft.memory_elsewhere is not None or draft.shape is None:
        return ""
    if device is None or config is None or config.run.is_elsewhere:
        return ""
    shares = compare.share_among(Estimator(draft.shape, device, draft.rows), config, len(draft.gpus))
    chosen = distribution_of(config.run)
    return render_shares(shares, device.free_bytes, chosen.name if chosen is not None else None)


def render_shares(
    shares: Sequence[compare.DeviceShare], free_bytes: int, chosen: DistributionName | None = None
) -> str:
    """Return the draft on several GPUs, per GPU, with a recommendation; a row can be picked."""
    rows = (
        Row(
            (
                under(share.label, f"{share.meaning} ({share.sharing})"),
                gib(share.needed_bytes) if not share.why_not else "–",
                f'<span class="soft">{escape(share.why_not)}</span>' if share.why_not else _FITS[share.verdict],
            ),
            'class="soft"' if share.why_not else pickable(share.label, chosen=share.sharing == chosen),
        )
        for share in shares
    )
    columns = [Column("Strategy"), Column.of_numbers("Each needs, GiB"), Column("Fits")]
    return (
        f"<h3>Your draft on all {shares[0].devices} GPUs</h3>"
        f'<p class="lead">{escape(compare.recommend(shares, free_bytes))} Pick a row to use it. With a copy on each or sharded, a '
        f"step has {shares[0].devices} times as many rows.</p>{table(columns, rows)}"
    )
