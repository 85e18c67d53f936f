"""The drawer with the draft as YAML: it follows the form, and what is applied is checked like the form."""

import json
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest

from loratory.engine.config.derived_defaults import apply_derived_defaults
from loratory.engine.config.load import config_from_mapping, mapping_from_yaml
from loratory.engine.config.presets import find_preset, list_presets
from loratory.engine.errors import ConfigError
from loratory.ui.gradio_internals import Blocks
from loratory.ui.page import Page
from loratory.ui.tabs.draft_yaml import YamlDrawer, render_texts
from loratory.ui.tabs.train import TrainTab
from tests.invented_runs import a_config
from tests.ui.form_visitor import FormVisitor


@pytest.fixture
def drawer(services) -> YamlDrawer:
    return lay_out(services)


def lay_out(services) -> YamlDrawer:
    with Blocks():
        page = Page(services)
        with gr.Tabs() as page.tabs, gr.Tab("Train", id="train"):
            train = TrainTab(page)
        train.follow.lay_out_side()
        drawer = YamlDrawer(page, train)
        page.form.complete()
        train.wire()
        drawer.wire()
        page.wire()
    return drawer


def apply(drawer: YamlDrawer, visitor: FormVisitor, text: str) -> None:
    visitor.fill(drawer.apply(SimpleNamespace(_data={"text": text})), "YAML")


def yaml_of(visitor: FormVisitor) -> str:
    return json.loads(render_texts(visitor.draft))["yaml"]


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_what_a_form_shows_as_yaml_fills_another_form_with_the_same(drawer, preset):
    visitor, other = FormVisitor(drawer.page), FormVisitor(drawer.page)
    visitor.fill(preset.mapping())

    apply(drawer, other, yaml_of(visitor))

    assert other.mapping == visitor.mapping
    assert other.reading.open_ones == visitor.reading.open_ones
    assert yaml_of(other) == yaml_of(visitor)
    assert config_from_mapping(mapping_from_yaml(yaml_of(visitor))) == apply_derived_defaults(preset.load())


def test_an_empty_form_has_an_empty_text_which_can_be_applied(drawer):
    visitor = FormVisitor(drawer.page)

    assert json.loads(render_texts(visitor.draft)) == {"yaml": "{}\n", "command": "loratory train"}
    assert drawer.drawer.query(["{}\n", ""]) == ""
    apply(drawer, visitor, "{}\n")


def test_yaml_that_is_applied_is_named_and_undone(drawer):
    visitor = FormVisitor(drawer.page)
    visitor.fill(a_config(adapter__r=8).model_dump(mode="json"))
    before = visitor.mapping

    apply(drawer, visitor, "model:\n  id: smollm2-135m-instruct\ntraining:\n  max_steps: 9\n")

    assert (visitor.mapping["training"]["max_steps"], visitor.mapping["adapter"]["r"]) == (9, 16)
    assert "source" not in visitor.mapping["dataset"]
    assert "YAML: changed " in visitor.applied_notice
    visitor.undo()
    assert visitor.mapping == before


def test_text_with_a_problem_is_marked_at_its_line_and_never_applied(drawer):
    text = "model:\n  id: <b>\ntraining:\n  learning_rate: 7\n"

    problems = drawer.drawer.query([text, ""])

    assert 'data-pick="4"' in problems
    assert "line 4: training.learning_rate: 7 is out of range" in problems
    assert "&#x27;&lt;i&gt;&#x27;" in drawer.drawer.query(["adapter:\n  r: <i>\n", ""])
    with pytest.raises(ConfigError):
        drawer.apply(SimpleNamespace(_data={"text": text}))
    with pytest.raises(ConfigError):
        drawer.apply(SimpleNamespace(_data={}))


@pytest.mark.parametrize("source", ["/etc/passwd", "../other/rows.jsonl"])
def test_a_person_of_a_lab_cannot_name_paths_of_others_in_yaml(services, source):
    drawer = lay_out(replace(services, home=services.home.for_person("ada")))
    text = f"model:\n  id: smollm2-135m-instruct\ndataset:\n  source: {source}\n"

    assert "line 4: dataset.source: that path is outside" in drawer.drawer.query([text, ""])
    with pytest.raises(ConfigError):
        drawer.apply(SimpleNamespace(_data={"text": text}))


def test_a_guest_may_leave_out_model_and_dataset(services):
    drawer = lay_out(replace(services, home=services.home.for_person("eve", "guest")))

    assert drawer.drawer.query(["training:\n  max_steps: 3\n", ""]) == ""
    assert "line 2: model.id: a guest" in drawer.drawer.query(["model:\n  id: some/model\n", ""])


def test_a_text_without_problems_is_saved_as_it_is_and_fills_a_form(drawer, services):
    text, visitor = "# mine\ntraining:\n  max_steps: 9\n", FormVisitor(drawer.page)

    assert drawer.drawer.query([text, "mine"]) == '<li class="right">Saved as mine.</li>'

    assert find_preset("mine", services.home).path.read_text() == text
    assert 'data-pick="mine"' in drawer.train.render_presets()
    visitor.fill(drawer.train.use_preset(SimpleNamespace(_data={"pick": "mine"}), *visitor.form_values()))
    assert visitor.mapping["training"]["max_steps"] == 9


@pytest.mark.parametrize(
    "text",
    ["training:\n  learning_rate: 7\n", "training:\n  nonsense: 7\n", "model: 7\n", "{", "", "a: \0", "a: \ud800"],
)
def test_a_text_with_a_problem_is_not_saved(drawer, services, text):
    assert 'class="wrong"' in drawer.drawer.query([text, "mine"])
    assert not services.home.presets.exists()


def test_a_name_that_cannot_be_is_refused_next_to_the_text(drawer, services):
    assert drawer.drawer.query(["{}\n", "../<i>"]) == (
        '<li class="wrong">A preset cannot be named &#x27;../&lt;i&gt;&#x27;. Use up to 40 letters, digits, - and _.</li>'
    )
    assert "There is a preset quickstart-cpu already." in drawer.drawer.query(["{}\n", "quickstart-cpu"])
    assert not services.home.presets.exists()


def test_people_of_a_lab_save_and_see_their_own(services):
    ann, bea = (lay_out(replace(services, home=services.home.for_person(name))) for name in ("ann", "bea"))
    eve = lay_out(replace(services, home=services.home.for_person("eve", "guest")))

    ann.drawer.query(["{}\n", "mine"])

    assert "mine" in ann.train.render_presets()
    assert "mine" not in bea.train.render_presets()
    assert "Presets of guests are not saved." in eve.drawer.query(["{}\n", "mine"])
    assert "that path is outside" in bea.drawer.query(["dataset:\n  source: /etc/passwd\n", "theirs"])
    assert not services.home.for_person("bea").presets.exists()
