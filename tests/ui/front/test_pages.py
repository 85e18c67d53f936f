"""What the pages of a lab share, what they do not, and what is cleared while they are open."""

import asyncio
import os
import time
from dataclasses import replace

from engine.config.run import ModelConfig
from tests.fake_inspector import FakeInspector
from tests.runs.supervision import wait_until
from tests.ui.front.lab import fake_services_of, running_lab
from ui.backend.models import KnownShapes, Shapes


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
            folder = lab.home.of("ann").transfers
            old, new = folder / "old", folder / "new"
            for file in (old, new):
                file.write_text("rows")
            os.utime(old, (time.time() - 86_400,) * 2)

            asyncio.run(lab.pages.sweep_transfers())

            assert (old.exists(), new.exists()) == (False, True)


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
