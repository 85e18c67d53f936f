"""What a page sends that is not offered is refused without saying what is."""

import gradio as gr
import pytest

from loratory.ui.build import build_app
from loratory.ui.gradio_internals import Dropdown, Radio


@pytest.mark.parametrize("kind", [Dropdown, Radio])
@pytest.mark.parametrize("value", ["no-such-run", ["no-such-run"]])
def test_an_unknown_choice_is_refused_without_the_list_of_choices(kind, value):
    component = kind([("A run of another person", "secret-run")], label="Run", render=False)

    with pytest.raises(gr.Error) as error_info:
        component.preprocess(value)

    assert "“Run”" in error_info.value.message
    assert "secret-run" not in error_info.value.message
    assert error_info.value.__cause__ is None
    assert component.preprocess("secret-run") == "secret-run"
    assert component.preprocess(None) is None


def test_every_choice_of_the_page_is_of_these(services):
    app = build_app(services)

    choices = [block for block in app.blocks.values() if isinstance(block, gr.Dropdown | gr.Radio)]
    assert len(choices) > 20
    assert [block.elem_id for block in choices if not isinstance(block, Dropdown | Radio)] == []


def test_a_browser_has_no_more_to_go_through_than_it_needs(services):
    """It goes through all components of the page for each target of an event, and for each value that an event reads."""
    page = build_app(services).get_config_file()

    assert len(page["components"]) <= 770
    hidden = [event["show_progress_on"] for event in page["dependencies"] if event["show_progress"] == "hidden"]
    assert len(hidden) > 100
    assert set(map(str, hidden)) == {"[]"}


def test_errors_go_once_what_they_may_be_about_is_changed(services):
    """Each place of an error, and what a person changes to mend it; what the draft holds is compared in the Train tab."""
    app = build_app(services)
    clearing = [event for event in app.fns.values() if event.js and 'role="alert"' in str(event.js)]
    places = {app.blocks[event.outputs[0]._id].elem_id: {app.blocks[number].elem_id or app.blocks[number].label for number, _ in event.targets} for event in clearing}  # fmt: skip

    assert places.keys() >= {
        "hub-results", "start-problems", "chat-state", "chat-trouble", "blind-trouble", "measure-status", "export-status",
    }  # fmt: skip
    assert "model-search" in places["hub-results"]
    assert places["start-problems"] >= {"sweep-settings"}
    assert places["measure-status"] >= {"measure-max_rows", "measure-max_new_tokens"}
    assert places["export-status"] >= {"export-folder", "export-repository", "export-run"}
    assert "chat-question" in places["chat-trouble"]
