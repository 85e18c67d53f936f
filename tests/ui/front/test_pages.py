"""What the pages of a lab share, what they do not, and what is cleared while they are open."""

import asyncio
import json
import os
import time
import weakref
from dataclasses import replace

import gradio as gr
import pytest
from fastapi import FastAPI
from gradio.routes import ORJSONResponse
from starlette.routing import Mount

from loratory.engine.config.run import ModelConfig
from loratory.engine.memory.compare import MethodNeed
from loratory.ui.backend.models import METHODS_JUDGED, KnownFits, KnownShapes, Shapes
from loratory.ui.front.memory import reclaim, trim_memory
from tests.fake_inspector import FakeInspector
from tests.fake_launcher import a_device
from tests.page_client import PageClient, read_config
from tests.ui.front.lab import fake_services_of, running_lab
from tests.waiting import wait_until


def test_shapes_of_the_catalogue_are_read_once_for_all_and_others_stay_a_persons_own():
    of_catalog: Shapes = {}
    ann, bea = (KnownShapes(FakeInspector(), of_catalog) for _ in range(2))  # type: ignore[arg-type]

    shape = ann.learn(ModelConfig(id="Qwen/Qwen3-0.6B"))
    ann.learn(ModelConfig(id="/models/of-ann"))

    assert bea.get("Qwen/Qwen3-0.6B", None) is shape
    assert bea.get("/models/of-ann", None) is None
    assert ann.get("/models/of-ann", None) is not None


def test_old_files_of_an_open_page_are_removed(tmp_path):
    with running_lab(tmp_path) as lab:
        lab.add("ann")
        with lab.signed_in("ann") as ann:
            assert ann.get("/config").status_code == 200
            folder = lab.home.for_person("ann").transfers
            old, new = folder / "old", folder / "new"
            for file in (old, new):
                file.write_text("rows")
            os.utime(old, (time.time() - 86_400,) * 2)

            asyncio.run(lab.pages.sweep_transfers())

            assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.exhaustive(quick=0)
def test_what_a_page_started_ends_soon_after_its_person_is_disabled(tmp_path):
    closed = []

    class Inspector(FakeInspector):
        def close(self):
            closed.append(True)

    def services_of(own, person):
        return replace(fake_services_of(own, person), inspector=Inspector())

    with running_lab(tmp_path, services_of) as lab:
        lab.add("root", "admin")
        lab.add("ann")
        with lab.signed_in("ann") as ann:
            assert ann.get("/config").status_code == 200
            assert not closed

            lab.accounts.disable("ann")

            wait_until(lambda: bool(closed))
            assert ann.get("/config").status_code == 401


def blocks_of(lab, name):
    (app,) = (route.app for route in lab.pages._pages[name].app.routes if isinstance(route, Mount))
    return app.get_blocks()  # type: ignore[attr-defined]


def test_a_trimmed_page_describes_itself_as_before_and_shares_nothing(tmp_path):
    with running_lab(tmp_path) as lab:
        configs, lists = {}, {}
        for name in ("ann", "bea"):
            lab.add(name)
            with lab.signed_in(name) as person:
                configs[name] = person.get("/config").json()
                document = person.get("/").text
            blocks = blocks_of(lab, name)
            fresh = json.loads(ORJSONResponse._render(blocks.get_config_file()))
            for part in ("components", "dependencies", "layout", "page"):
                assert configs[name][part] == fresh[part], part
            assert '"elem_id":"tabs"' in document
            lists[name] = {id(part) for event in blocks.fns.values() for part in (event.inputs, event.outputs)}
            assert len(lists[name]) < len(blocks.fns)
            assert all(len(vars(event)) < 25 for event in blocks.fns.values())  # most of 46 attributes are as in all
            assert len({id(block.temp_files) for block in blocks.blocks.values()}) == 1

        assert not lists["ann"] & lists["bea"]


def share_lines(lines):
    """Three boxes of a page with what they had before; only two of them have a `mark`."""
    with gr.Blocks() as blocks:
        boxes = [gr.Textbox(lines=lines, max_lines=number) for number in (7, 8, 9)]
    boxes[0].mark = boxes[1].mark = 1
    app = gr.mount_gradio_app(FastAPI(), blocks, path="/")
    (inner_app,) = (route.app for route in app.routes if isinstance(route, Mount))
    before = [dict(vars(box)) for box in boxes]
    trim_memory(blocks, inner_app, lambda _: True)
    return boxes, before


def test_what_a_class_got_from_one_page_changes_no_value_of_another():
    for boxes, had in [share_lines(lines) for lines in (2, 3, True)]:
        for box, values in zip(boxes, had, strict=True):
            assert len(vars(box)) < len(values) - 10
            for name in values.keys() - {"temp_files", "keep_in_cache", "GRADIO_CACHE", "share_token"}:
                assert (type(getattr(box, name)), getattr(box, name)) == (type(values[name]), values[name]), name
        assert [hasattr(box, "mark") for box in boxes] == [True, True, False]
        boxes[0].interactive = not boxes[0].interactive
        assert boxes[1].interactive == had[1]["interactive"]


@pytest.mark.exhaustive(quick=0)
def test_a_page_that_was_closed_leaves_nothing_behind(tmp_path):
    with running_lab(tmp_path) as lab:
        lab.add("root", "admin")
        lab.add("ann")
        with lab.signed_in("ann") as ann, PageClient.open(ann, read_config(ann)):
            left = weakref.ref(blocks_of(lab, "ann"))
        lab.accounts.disable("ann")
        wait_until(lambda: "ann" not in lab.pages._pages)

        def is_gone():
            reclaim()
            return left() is None

        wait_until(is_gone)


def test_verdicts_on_the_catalogue_are_found_once_for_all_pages():
    fits, requests = KnownFits(), []
    device = a_device()
    free = device.free_bytes
    lora, four_bit, full = METHODS_JUDGED

    def estimate():
        requests.append(free)
        return (
            MethodNeed(method=lora, needed_bytes=free, expected_bytes=free - 2**30),
            MethodNeed(method=four_bit, needed_bytes=free // 2, expected_bytes=free // 3),
            MethodNeed(method=full, why_not="It cannot."),
        )

    def verdicts(device):
        return [need.verdict for need in fits.find("a/model", device, estimate)]

    for _ in range(2):
        assert verdicts(device) == ["fits", "fits", None]
    assert verdicts(replace(device, free_bytes=free - 1)) == ["tight", "fits", None]
    assert verdicts(replace(device, free_bytes=1)) == ["does_not_fit", "does_not_fit", None]
    assert len(requests) == 1


def test_a_model_that_could_not_be_read_is_read_again():
    fits, device = KnownFits(), a_device()
    needs = tuple(MethodNeed(method=name, needed_bytes=1, expected_bytes=1) for name in METHODS_JUDGED)
    assert fits.find("a/model", device, tuple) == ()
    assert [need.verdict for need in fits.find("a/model", device, lambda: needs)] == ["fits", "fits", "fits"]
