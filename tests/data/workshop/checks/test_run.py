"""All checks in one pass, and rows that were written to stop them."""

import json
import time

import pytest

from loratory.engine.data.workshop.checks.run import CHECKS
from loratory.engine.errors import ConfigError
from tests.data.workshop.checks.reports import report_of, talk

_SECONDS = 60  # on a busy machine; what backtracks takes hours


def test_every_check_says_what_it_finds_in_one_sentence(tmp_path):
    report = report_of(tmp_path, [talk("Hi", "Hello there")])

    assert [check.name for check in report.checks] == list(CHECKS)
    assert all(check.finds.endswith(".") and "\n" not in check.finds for check in report.checks)
    assert not any(check.findings for check in report.checks)
    assert json.loads(report.model_dump_json())["rows"] == 1


def test_an_unknown_check_is_refused_with_those_that_exist(tmp_path):
    with pytest.raises(ConfigError, match="near_duplicates"):
        report_of(tmp_path, [talk("Hi", "Hello")], "spelling")


def test_all_findings_are_counted_and_the_first_thousand_listed(tmp_path):
    (check,) = report_of(tmp_path, [talk("Hi", "Hello")] * 1203, "duplicates").checks

    assert (check.rows, check.kinds, len(check.findings)) == (1202, {"exact": 1202}, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "a" * (7 << 20),
        "1" * 1_000_000,
        "1 " * 500_000,
        "a@" * 500_000,
        "<think>" * 100_000,
        "é" * 1_000_000,
        "Ã©" * 500_000,
        "x\n" * 100_000,
        "`" * 1_000_000,
        "(+1-" * 250_000,
    ],
    ids=lambda text: ascii(text[:7]),
)
def test_a_hostile_row_is_checked_in_bounded_time(tmp_path, text):
    start = time.process_time()
    report_of(tmp_path, [talk("Hi", text), talk("Hi", "Hello")])

    assert time.process_time() - start < _SECONDS


def test_a_row_of_many_turns_is_checked_in_bounded_time(tmp_path):
    start = time.process_time()
    turns = [{"role": ("user", "assistant")[number % 2], "content": f"Turn {number}"} for number in range(5000)]
    report_of(tmp_path, [{"messages": turns}])

    assert time.process_time() - start < _SECONDS
