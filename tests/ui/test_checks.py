"""Passes over whole datasets: shared by the pages that wait for them, and ended when no one does any more."""

import threading
from dataclasses import replace

import pytest

from loratory.engine.config.run import ModelConfig
from loratory.engine.data.contract import CheckProgress
from loratory.ui.backend.dataset_checks import DatasetChecks
from tests.fake_inspector import a_report
from tests.ui.data_tab_visitor import PATIENCE_SECONDS, question_on
from tests.waiting import wait_until


class HeldInspector:
    """Passes over the data that continue, saying how far they are, until they are let go."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.under_way: list[int] = []  # lengths that are being counted
        self.fetching_was_stopped = 0

    def check(self, dataset, model, max_length, *, seed, vision, on_progress):
        self.under_way.append(max_length)
        try:
            while not self.goes_on.wait(0.005):
                on_progress(CheckProgress(rows=1, bytes_read=1, size_bytes=2))
        finally:
            self.under_way.remove(max_length)
        return a_report(dataset, model, max_length)

    def stop_fetching(self) -> None:
        self.fetching_was_stopped += 1


@pytest.fixture
def inspector():
    inspector = HeldInspector()
    yield inspector
    inspector.goes_on.set()


@pytest.fixture
def checks(inspector) -> DatasetChecks:
    return DatasetChecks(inspector)


def with_length(max_length: int, source: str = "rows.jsonl"):
    return replace(question_on(source), max_length=max_length)


def test_a_page_that_asks_again_ends_its_former_pass(checks, inspector):
    for length in (1, 10, 102, 1024):
        checks.request(with_length(length), "page")

    wait_until(lambda: inspector.under_way == [1024])
    assert checks.find(with_length(102)) is None, "no one stopped it, so it begins again when it is asked"


def test_a_pass_that_another_page_waits_for_continues(checks, inspector):
    checks.request(with_length(512), "one")
    checks.request(with_length(512), "other")
    checks.request(with_length(1024), "one")

    wait_until(lambda: sorted(inspector.under_way) == [512, 1024])
    checks.request(with_length(1024), "other")
    wait_until(lambda: inspector.under_way == [1024])


def test_a_pass_without_a_page_or_one_that_has_ended_is_left_alone(checks, inspector):
    without_page = checks.request(with_length(256))
    inspector.goes_on.set()
    finished_check = checks.request(with_length(512), "page")
    wait_until(lambda: finished_check.is_done and without_page.is_done)
    checks.request(with_length(1024), "page")

    assert checks.find(with_length(512)) is finished_check
    assert without_page.report is not None


def test_rows_are_looked_at_with_and_without_a_tokenizer_for_one_form(checks, inspector):
    question = with_length(512)
    checks.request(replace(question, model=None), "page")
    checks.request(question, "page")
    wait_until(lambda: inspector.under_way == [512, 512])

    checks.request(replace(question, model=ModelConfig(id="another")), "page")
    assert checks.find(question) is None
    assert checks.find(replace(question, model=None)) is not None
    wait_until(lambda: len(inspector.under_way) == 2)


@pytest.mark.parametrize(("source", "stops"), [("owner/data", 0), ("owner/another", 1), ("rows.jsonl", 1)])
def test_fetching_ends_once_the_page_has_gone_on_to_other_data(checks, inspector, source, stops):
    former = checks.read(with_length(512, "owner/data"))
    assert checks.request(with_length(512, "owner/data"), "page") is former

    checks.request(with_length(1024, source), "page")

    assert former.stop.wait(PATIENCE_SECONDS)
    assert inspector.fetching_was_stopped == stops


def test_a_fetch_that_a_person_stops_ends_and_the_dataset_waits_again(checks, inspector):
    check = checks.read(with_length(512, "owner/data"))

    checks.stop(with_length(512, "owner/data"))
    wait_until(lambda: check.is_done)

    assert check.was_stopped
    assert inspector.fetching_was_stopped == 1
    assert checks.request(with_length(512, "owner/data")) is check
    assert checks.request(with_length(64, "owner/data")).waits


def test_a_pass_that_no_page_looks_at_ends_by_itself(checks, inspector, monkeypatch):
    monkeypatch.setattr("loratory.ui.backend.dataset_checks._UNWANTED_SECONDS", 0.0)
    forgotten = checks.request(with_length(512), "page")

    assert forgotten.stop.wait(PATIENCE_SECONDS)
    wait_until(lambda: inspector.under_way == [])
