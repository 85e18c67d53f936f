"""The Data tab on fakes: when all rows are read, what stops that, and what stays in sight."""

import time

import gradio as gr

from loratory.engine.data.contract import CheckProgress
from loratory.ui.backend.dataset_checks import DatasetChecks
from tests.fake_inspector import FakeInspector
from tests.ui.data_tab_visitor import question_on
from tests.waiting import wait_until


def test_a_dataset_of_the_hub_is_read_from_end_to_end_only_when_asked_to(visitor, services):
    updates = visitor.open(dataset__source="somebody/some-data")

    assert updates["read"] == gr.update(value="Read all rows", visible=True)
    assert "is on the Hub" in updates["facts"]
    assert "not read: photo." in updates["facts"]  # no one should have to fetch all of it to be told
    assert not services.checks.find(question_on("somebody/some-data")).is_under_way

    visitor.tab.read_all(*visitor.values(dataset__source="somebody/some-data"))
    wait_until(lambda: services.checks.find(question_on("somebody/some-data")).is_done)

    assert "rows kept" in visitor.tick(dataset__source="somebody/some-data")["facts"]
    # Another length is another question about rows that are here by now.
    longer = services.checks.request(question_on("somebody/some-data", training__max_length=64))
    assert not longer.waits


class EndlessInspector(FakeInspector):
    """Its checks continue until they are stopped."""

    def __init__(self):
        super().__init__()
        self.checks = 0

    def check(self, dataset, model=None, max_length=1024, *, seed=42, vision=None, on_progress=None):
        self.checks += 1
        for rows in range(10**9):
            on_progress(CheckProgress(rows=rows, bytes_read=0, size_bytes=None))
            time.sleep(0.005)
        raise AssertionError("unreachable")


def test_a_stop_stays_until_a_person_reads_again(visitor, services):
    inspector = EndlessInspector()
    object.__setattr__(services, "checks", DatasetChecks(inspector))
    settings = {"dataset__source": "rows.jsonl"}
    assert visitor.open(**settings)["stop"]["visible"]

    visitor.tab.stop_reading(*visitor.values(**settings))
    wait_until(lambda: services.checks.find(question_on("rows.jsonl")).is_done)
    updates = visitor.open(**settings)

    assert "Reading was stopped" in updates["facts"]
    assert updates["read"] == gr.update(value="Read again", visible=True)
    assert inspector.checks == 1

    visitor.tab.read_all(*visitor.values(**settings))
    assert services.checks.find(question_on("rows.jsonl")).is_under_way
    wait_until(lambda: inspector.checks == 2)
    visitor.tab.stop_reading(*visitor.values(**settings))


def test_an_error_stays_until_the_question_changes(services):
    class FailingInspector(FakeInspector):
        checks = 0

        def check(self, *_args, **_settings):
            self.checks += 1
            raise RuntimeError("gone")

    inspector = FailingInspector()
    checks = DatasetChecks(inspector)
    for _ in range(3):
        check = checks.request(question_on("rows.jsonl"))
        wait_until(lambda check=check: check.is_done)

    assert inspector.checks == 1
    assert "unexpected" in check.error.what
    wait_until(lambda: checks.request(question_on("rows.jsonl", training__max_length=64)).is_done)
    assert inspector.checks == 2
