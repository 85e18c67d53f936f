"""The audit log is only appended to, whole lines at a time."""

import multiprocessing
import stat

import pytest

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.errors import StorageError


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl", clock=lambda: 7.0)


def test_entries_are_read_as_they_were_written(log, tmp_path):
    log.write("ann", "run deleted", "bea/20260101-000000-000-abcd", address="10.0.0.1")
    log.write("", "invited", detail="member")

    first, second = log.entries()

    assert (first.time, first.person, first.kind, first.address) == (7.0, "ann", "run deleted", "10.0.0.1")
    assert (second.person, second.detail, second.subject) == ("", "member", "")
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600


def test_a_name_with_line_breaks_stays_in_its_line(log):
    log.write("", "sign-in failed", 'x"}\n{"time": 1, "person": "root", "kind": "signed in"}\n\ud800')

    (entry,) = log.entries()

    assert entry.kind == "sign-in failed"


def test_a_torn_line_is_passed_over(log, tmp_path):
    log.write("ann", "signed in")
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"time": 8, "per\n')
    log.write("ann", "signed out")

    assert [entry.kind for entry in log.entries()] == ["signed in", "signed out"]


def test_what_cannot_be_logged_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="audit log cannot be written"):
        AuditLog(tmp_path / "missing" / "audit.jsonl").write("ann", "signed in")


def write_many(path, number):
    for _ in range(200):
        AuditLog(path).write(f"person-{number}", "signed in", "x" * 150)


def test_lines_of_several_processes_do_not_mix(log, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(tmp_path / "audit.jsonl", number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert len(list(log.entries())) == 800
