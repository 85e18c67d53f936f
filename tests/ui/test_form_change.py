"""What is put into the form at once does what it says, reports what it did, and can be undone."""

import contextlib
import random
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config.derived_defaults import SETTINGS
from engine.config.load import config_from_mapping, with_overrides
from engine.config.methods.registry import METHODS
from engine.errors import ConfigError
from engine.hardware.device import Device
from engine.memory.advice import advise
from tests.invented_runs import a_config
from tests.ui.drafts import small_shape
from tests.ui.form_visitor import FormVisitor
from ui.side_panel import overrides_of
from ui.tabs.method import MethodTab
from ui.views.memory import render_advice

GIB = 2**30


def gpu(gib: float) -> Device:
    return Device("cuda", 0, "a GPU", int(gib * GIB), int(gib * GIB), has_fast_bfloat16=True)


@pytest.fixture
def visitor(laid_out) -> FormVisitor:
    return FormVisitor(laid_out(MethodTab).page)


def a_draft(draw: random.Random) -> dict[str, Any]:
    """Settings that advice may be about; those that do not go together are drawn again."""
    while True:
        drawn = {
            "model": {
                "id": "some/model", "quantization": draw.choice(("none", "none", "nf4", "int8")),
                "double_quant": draw.random() < 0.5, "attn_implementation": draw.choice(("auto", "eager")),
            },
            "adapter": {"method": draw.choice(list(METHODS)), "use_dora": draw.random() < 0.2},
            "dataset": {"source": "sample:loratory-faq"},
            "training": {
                "per_device_train_batch_size": draw.choice((1, 2, 6, 16, 64)),
                "gradient_accumulation_steps": draw.choice((1, 4, 15)),
                "max_length": draw.choice((144, 512, 2048)), "gradient_checkpointing": draw.random() < 0.4,
                "optim": draw.choice(("adamw_torch", "adamw_8bit")),
            },
        }  # fmt: skip
        with contextlib.suppress(ConfigError):
            return config_from_mapping(drawn).model_dump(mode="json")


@pytest.mark.exhaustive(quick=0)
def test_every_row_offered_does_what_it_says_whatever_memory_is_free_when_it_is_clicked(laid_out, services):
    draw, free = random.Random(18), [1.0]
    pressed: Counter[str] = Counter()
    shapes = SimpleNamespace(
        get=lambda model_id, revision: small_shape() if model_id else None, trouble=lambda *_: None
    )
    page = laid_out(MethodTab).page
    page.services = replace(services, shapes=shapes, devices=lambda: (gpu(free[0]),))
    visitor = FormVisitor(page)
    for _ in range(200):
        free[0] = draw.uniform(0.4, 4)
        drawn = a_draft(draw)
        visitor.fill(drawn)
        before, form = visitor.mapping, page.draft([visitor.values[part] for part in page.form.components])
        advice = advise(form.shape, form.config, form.device)
        offers = {" ".join(change.overrides): change for change in (*advice.changes, *advice.limits)}
        rows = [unescape(pick) for pick in re.findall(r'data-pick="([^"]+)"', render_advice(advice, form.estimate))]
        for pick in rows:
            free[0] = draw.uniform(0.4, 4)  # meanwhile another program took memory, or left some

            visitor.change(overrides_of(pick))

            text, now = with_overrides(before, offers[pick].overrides), visitor.mapping
            for section, _, name in (setting.partition(".") for setting in SETTINGS if f"{setting}=" not in pick):
                assert now[section].get(name) == text[section].get(name) or name in str(
                    visitor.values[page.last_change].names
                )
                text[section][name] = now[section][name] = (
                    None  # a default that no one set follows, and the page reports it
                )
            assert now == text
            if "16 bits" not in offers[pick].change:
                figures = [word.strip(",;") for word in offers[pick].change.split() if word[0].isdigit()]
                assert all(f"={figure.replace(',', '')}" in pick for figure in figures)
            assert visitor.values[page.last_change].render(visitor.reading)
            visitor.undo()
            assert visitor.mapping == before
            pressed[offers[pick].kind] += 1
    assert len(pressed) > 10, pressed


@pytest.mark.parametrize(
    "forged",
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
def test_what_no_row_says_changes_nothing_or_is_refused_with_a_message(forged):
    if not forged:
        assert overrides_of(forged) == {}
    else:
        with pytest.raises(ConfigError):
            overrides_of(forged)


def test_a_change_is_confirmed_in_words_and_undone(visitor):
    visitor.fill(a_config(training__max_length=1024).model_dump(mode="json"))
    visitor.change({"training": {"max_length": 144}})

    assert "Max length 1024 → 144 · <button" in visitor.applied_notice
    visitor.undo()
    assert visitor.mapping["training"]["max_length"] == 1024
    assert "Undone: Max length 144 → 1024" in visitor.applied_notice
    visitor.undo()
    assert visitor.mapping["training"]["max_length"] == 144


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

    assert re.search(r"Settings copied: model empty → .+, \d+ more · <button", visitor.applied_notice)
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
