"""Measuring and taking away as the page asks for it: where it may write, and what stays with the run."""

from dataclasses import replace

import pytest

from loratory.engine.config.results import ExportConfig, PushConfig
from loratory.engine.errors import StorageError
from loratory.engine.export.contract import read_records, records_file
from tests.invented_runs import InventedRun, a_config, write_run

WAIT_SECONDS = 300


@pytest.fixture
def results(services):
    return services.results


@pytest.fixture
def run(services):
    return write_run(services.runs, a_config(run__name="faq, rank 16"), InventedRun())


def test_the_proposed_folder_is_named_for_the_run_and_new(results):
    first = results.proposed_folder("faq: rank 16 / <b>", "merged")
    first.mkdir(parents=True)

    assert first == results.home.exports / "faq-rank-16-b-merged"
    assert results.proposed_folder("faq: rank 16 / <b>", "merged").name == "faq-rank-16-b-merged-2"
    assert results.allowed_folder(str(first)) == first.resolve()
    assert results.proposed_folder("../..", "gguf").name == "run-gguf"


def test_a_name_alone_lies_among_the_exports(results):
    assert results.allowed_folder("mine") == (results.home.exports / "mine").resolve()


@pytest.mark.parametrize("typed", ["", "  ", "/etc/loratory", "..", "../runs/x", "a\0b", "~root/x", "x" * 1001, "."])
def test_the_page_writes_nowhere_else(results, typed):
    with pytest.raises(StorageError):
        results.allowed_folder(typed)


def test_own_folders_are_allowed_but_not_what_loratory_keeps_there(services, tmp_path):
    results = replace(services.results, roots=(tmp_path,))

    assert results.allowed_folder(str(tmp_path / "mine")) == (tmp_path / "mine").resolve()
    with pytest.raises(StorageError):
        results.allowed_folder(str(services.home.runs / "somebody" / "x"))
    link = tmp_path / "link"
    link.symlink_to("/etc")
    with pytest.raises(StorageError):
        results.allowed_folder(str(link / "x"))


def test_what_was_taken_away_stays_with_the_run(results, run):
    folder = results.proposed_folder("faq", "merged")
    results.write(run, "step-30", folder, ExportConfig(kind="merged")).done.wait(WAIT_SECONDS)
    results.publish(run, None, "me/faq", PushConfig()).done.wait(WAIT_SECONDS)

    pushed, export = read_records(run.folder.path)

    assert (export.kind, export.location, export.checkpoint) == ("merged", str(folder), "step-30")
    assert export.verified.passed
    assert export.size_bytes == 28_400
    assert (pushed.kind, pushed.location) == ("hub", "https://huggingface.co/me/faq")


def test_a_damaged_line_of_the_list_costs_only_itself(results, run):
    results.write(run, None, results.proposed_folder("faq", "adapter"), ExportConfig()).done.wait(WAIT_SECONDS)
    with records_file(run.folder.path).open("ab") as lines:
        lines.write(b'{"kind": "mer\n')
    results.write(run, None, results.proposed_folder("faq", "merged"), ExportConfig(kind="merged")).done.wait(
        WAIT_SECONDS
    )

    assert [record.kind for record in read_records(run.folder.path)] == ["merged", "adapter"]
