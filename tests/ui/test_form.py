"""The form as one value: what the components send becomes a configuration, and a configuration fills them again."""

import gradio as gr
import orjson
import pytest

from loratory.engine.config.derived_defaults import SETTINGS
from loratory.engine.config.load import config_from_mapping, setting_names
from loratory.engine.errors import ConfigError
from loratory.ui.build import build_app
from loratory.ui.form import Form, component_for, field_of, label_of
from loratory.ui.gradio_internals import Blocks
from tests.ui.drafts import form_values


def whole_form() -> Form:
    form = Form()
    with Blocks():
        form.setting("adapter.r")
        form.setting("adapter.modules_to_save")
        form.setting("run.devices")
        form.register("adapter.target_modules", gr.CheckboxGroup([]))
        form.complete()
    return form


def values_of(form: Form, **settings: object) -> list[object]:
    return form_values(form, **{"model__id": "m", "dataset__source": "d", **settings})


def test_every_setting_is_carried_even_if_no_tab_shows_it():
    assert sorted(whole_form().names) == sorted(setting_names())


def test_an_untouched_form_is_the_default_configuration():
    form = whole_form()
    mapping = form.mapping(values_of(form))
    mapping["adapter"].pop("target_modules")  # none are known before a model is chosen

    assert config_from_mapping(mapping) == config_from_mapping({"model": {"id": "m"}, "dataset": {"source": "d"}})


@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": {"r": 4, "modules_to_save": ["lm_head", "embed_tokens"], "target_modules": ["q_proj"]}},
        {"run": {"devices": [0, 1], "name": "night"}, "training": {"eval_steps": 5, "learning_rate": 3e-3}},
        {"dataset": {"column_map": {"output": "answer"}, "images": ["fetch"]}, "run": {"devices": "cpu"}},
    ],
)
def test_a_configuration_survives_the_way_through_the_form(sections):
    base = {"model": {"id": "m"}, "dataset": {"source": "d"}}
    config = config_from_mapping(
        {**base, **{name: {**base.get(name, {}), **values} for name, values in sections.items()}}
    )
    form = whole_form()

    values = form.updates(config.model_dump(mode="json"))
    mapping = form.mapping(values)
    if not mapping["adapter"]["target_modules"]:
        mapping["adapter"]["target_modules"] = "all-linear"

    assert config_from_mapping(mapping) == config


def test_what_fills_an_empty_form_comes_back_from_the_browser(page_form):
    """A component that refuses what it was sent breaks every event that reads the form."""
    for component, value in zip(page_form.components, page_form.updates({}), strict=True):
        assert component.preprocess(component.postprocess(value)) == value


def test_several_choices_are_sent_as_the_list_that_their_component_takes(page_form):
    values = page_form.updates({"training": {"report_to": ("trackio", "tensorboard")}})

    assert values[page_form.names.index("training.report_to")] == ["trackio", "tensorboard"]


# Several values at once, for which a tab builds what it needs.
COMPOUND = ("adapter.target_modules", "dataset.column_map", "dataset.mix")


@pytest.mark.parametrize("name", [name for name in setting_names() if name not in COMPOUND])
def test_a_component_takes_label_help_and_default_from_the_field(name):
    field = field_of(name)
    component = component_for(name)

    assert component.info == field.description
    assert component.label.startswith(field.title)
    if not field.is_required() and name not in SETTINGS:
        assert (component.value or None) == (field.default or None)


def test_a_slider_cannot_leave_the_bounds_of_its_field():
    slider = component_for("adapter.encoder_num_layers")

    assert (slider.minimum, slider.maximum) == (1, 16)


@pytest.mark.parametrize("typed", [None, 0, 4096])
def test_what_is_typed_into_the_box_of_a_slider_is_judged_by_its_field(page_form, typed):
    """A slider that raises for it would raise in every event that reads the form."""
    rank = page_form.names.index("adapter.r")

    assert page_form.components[rank].preprocess(typed) == typed
    assert page_form.components[rank].get_config()["maximum"] == 256


def test_numbers_that_no_answer_could_carry_are_refused_in_words():
    form = whole_form()
    mapping = form.mapping(values_of(form, training__max_steps=10**20, run__devices="²"))

    assert orjson.loads(orjson.dumps(mapping)) == mapping, "Gradio sends the form back to the browser"
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(mapping)
    assert {problem.field for problem in caught.value.problems} == {"training.max_steps", "run.devices"}


def test_ticks_of_a_model_that_was_chosen_before_break_nothing(page_form):
    """They are still on their way when the boxes have the layers of another model."""
    assert page_form["adapter.target_modules"].preprocess(["c_attn"]) == ["c_attn"]


def test_no_number_box_begins_empty_as_gradio_would_show_0(services):
    boxes = [block for block in build_app(services).blocks.values() if isinstance(block, gr.Number | gr.Slider)]

    assert boxes
    assert [box.label for box in boxes if box.value is None] == []


@pytest.mark.parametrize(
    ("typed", "value"), [("", None), (" 80 ", 80), ("0.5", 0.5), ("1e3", 1000.0), ("many", "many"), (None, None)]
)
def test_a_box_that_may_stay_empty_reports_nothing_or_a_number_or_what_is_none(typed, value):
    form = whole_form()

    mapping = form.mapping(values_of(form, training__save_steps=typed))

    assert mapping["training"].get("save_steps") == value
    if isinstance(value, int):
        assert form.updates(mapping)[form.names.index("training.save_steps")] == str(value)


def test_a_choice_that_another_version_offered_becomes_the_default():
    form = whole_form()
    saved = {"training": {"optim": "adamw_of_old", "report_to": ["trackio", "another"]}}

    values = dict(zip(form.names, form.updates(saved), strict=True))

    assert values["training.optim"] == "adamw_torch"
    assert values["training.report_to"] == ["trackio"]


def test_a_magnitude_is_stepped_by_factors_and_a_share_by_a_hundredth():
    def number(name: str) -> gr.Number:
        with Blocks():
            return Form().setting(name)

    assert [number(f"training.{name}").elem_classes[0] for name in ("learning_rate", "weight_decay", "beta")] == [
        "by-decades"
    ] * 3
    assert number("adapter.vera_dropout").step == 0.01
    assert number("training.num_train_epochs").elem_classes == ["training.num_train_epochs"]


def test_an_emptied_number_shows_its_default():
    with Blocks():
        assert component_for("training.learning_rate").placeholder == "0.0002"
        assert component_for("training.num_train_epochs").placeholder == "3"


def test_the_term_is_next_to_plain_words_only_where_they_differ():
    assert label_of("adapter.r") == "Rank (r)"
    assert label_of("training.learning_rate") == "Learning rate"
