"""What is put into the form at once does what it says, reports what it did, and can be undone."""

import re
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import pytest

from loratory.engine.config.load import change_of, with_overrides
from loratory.engine.errors import ConfigError
from loratory.engine.hardware.device import Device
from loratory.engine.memory.advice import advise
from loratory.engine.memory.estimate import estimate_memory
from loratory.ui.tabs.method import MethodTab
from loratory.ui.views.memory import render_advice
from tests.invented_runs import a_config
from tests.ui.drafts import small_shape
from tests.ui.form_visitor import FormVisitor

GIB = 2**30


def gpu(gib: float) -> Device:
    return Device("cuda", 0, "a GPU", int(gib * GIB), int(gib * GIB), has_fast_bfloat16=True)


@pytest.fixture
def visitor(laid_out) -> FormVisitor:
    return FormVisitor(laid_out(MethodTab).page)


@pytest.mark.parametrize(("gib", "kinds"), [(0.1, {"smaller_batch"}), (80, {"checkpointing_off", "unquantized"})])
def test_every_row_of_the_advice_does_what_its_text_says(laid_out, services, gib, kinds):
    shapes = SimpleNamespace(
        get=lambda model_id, revision: small_shape() if model_id else None, trouble=lambda *_: None
    )
    page = laid_out(MethodTab).page
    page.services = replace(services, shapes=shapes, devices=lambda: (gpu(gib),))
    visitor = FormVisitor(page)
    visitor.fill(
        a_config(
            model__quantization="nf4", training__gradient_checkpointing=True, training__max_length=2048,
            training__per_device_train_batch_size=64, training__optim="adamw_torch",
        ).model_dump(mode="json")
    )  # fmt: skip
    before, draft = visitor.mapping, visitor.draft
    advice = advise(draft.shape, draft.config, draft.device)
    changes = {" ".join(change.overrides): change for change in (*advice.changes, *advice.limits)}
    picks = [unescape(pick) for pick in re.findall(r'data-pick="([^"]+)"', render_advice(advice, draft.estimate))]
    assert kinds <= {changes[pick].kind for pick in picks}

    for pick in picks:
        page.services = replace(page.services, devices=lambda: (gpu(1),))  # other programs took memory, or left some
        visitor.change(change_of(pick.split()))

        expected, now = with_overrides(before, changes[pick].overrides), visitor.mapping
        assert {name: now[section][name] for section, name in map(_split, changes[pick].overrides)} == {
            name: expected[section][name] for section, name in map(_split, changes[pick].overrides)
        }
        assert visitor.values[page.last_change].render(visitor.reading)
        visitor.undo()
        assert visitor.mapping == before


def _split(override: str) -> tuple[str, str]:
    section, _, name = override.partition("=")[0].partition(".")
    return section, name


def test_where_nothing_helps_a_smaller_model_is_named():
    config = a_config(model__quantization="nf4")
    estimate = estimate_memory(small_shape(), config, gpu(0.001))
    advice = advise(small_shape(), config, gpu(0.001))

    assert "a smaller model would" in render_advice(advice.model_copy(update={"changes": ()}), estimate)


@pytest.mark.parametrize(
    "pick",
    [
        "",
        "max_length=144",
        "training.max_length=144 gone.setting=1",
        "training.max_length=7",
        "[[[[",
        "model=5",
        "a.b.c.d=1",
    ],
)
def test_what_no_row_says_changes_nothing_or_is_refused_with_a_message(pick):
    if not pick:
        assert change_of(pick.split()) == {}
    else:
        with pytest.raises(ConfigError):
            change_of(pick.split())


def test_a_change_is_confirmed_in_words_and_undone(visitor):
    visitor.fill(a_config(training__max_length=1024).model_dump(mode="json"))
    visitor.change({"training": {"max_length": 144}})

    assert "Max length 1024 → 144 · <button" in visitor.applied_notice
    visitor.undo()
    assert visitor.mapping["training"]["max_length"] == 1024
    assert "Undone: Max length 144 → 1024" in visitor.applied_notice
    visitor.undo()
    assert visitor.mapping["training"]["max_length"] == 144


def test_a_method_is_named_by_its_label(visitor):
    visitor.fill(a_config().model_dump(mode="json"))
    visitor.change({"adapter": {"method": "none"}})
    assert "LoRA → Full fine-tuning" in visitor.applied_notice


def test_a_mapping_is_named_as_it_is_typed(visitor):
    visitor.fill(a_config().model_dump(mode="json"))
    visitor.change({"dataset": {"role_map": {"customer": "user", "agent": "assistant"}}})
    assert "customer: user, agent: assistant" in visitor.applied_notice


def test_undo_leaves_what_was_set_by_hand_since(visitor):
    visitor.fill(a_config(training__max_length=640, training__learning_rate=3e-4).model_dump(mode="json"))
    visitor.change({"training": {"max_length": 144, "gradient_checkpointing": True}})
    visitor.set_by_hand(training__max_length=200, training__learning_rate=5e-4)

    assert "Gradient checkpointing off → on" in visitor.applied_notice
    assert "max_length" not in visitor.applied_notice
    visitor.undo()

    training = visitor.mapping["training"]
    assert (training["max_length"], training["learning_rate"]) == (200, 5e-4)
    assert training["gradient_checkpointing"] is False


def test_what_no_longer_stands_is_no_longer_offered_to_undo(visitor):
    visitor.change({"training": {"max_length": 144}})
    visitor.set_by_hand(training__max_length=200)

    assert visitor.applied_notice == ""
    visitor.undo()
    assert visitor.mapping["training"]["max_length"] == 200


def test_a_preset_or_copied_settings_are_undone_as_a_whole(visitor):
    visitor.set_by_hand(training__max_length=777, run__name="<mine>", adapter__target_modules=["q_proj", "v_proj"])
    before = visitor.mapping
    visitor.fill(a_config(adapter__r=512, dataset__source="/data/<b>.jsonl").model_dump(mode="json"), "Settings copied")

    assert re.search(
        r"Settings copied: changed \d+ settings: model empty → .+<summary>\d+ more</summary>.+Max length 777 → ",
        visitor.applied_notice,
    )
    assert "<b>" not in visitor.applied_notice
    visitor.values[visitor.page.copied_from] = "a run"
    visitor.undo()
    assert visitor.mapping == before
    assert visitor.values[visitor.page.copied_from] == ""


def test_a_restored_draft_can_be_undone_until_something_is_changed(visitor):
    empty = visitor.mapping
    stored_config = a_config(training__max_length=640).model_dump(mode="json")
    visitor.take(visitor.page.restore_draft(stored_config))

    assert "Draft restored" in visitor.applied_notice
    visitor.undo()
    assert visitor.mapping == empty

    visitor.take(visitor.page.restore_draft(stored_config))
    visitor.set_by_hand(training__learning_rate=5e-4)
    assert visitor.applied_notice == ""


def test_a_page_without_a_draft_has_nothing_to_undo(visitor):
    visitor.undo()

    assert visitor.applied_notice == ""
