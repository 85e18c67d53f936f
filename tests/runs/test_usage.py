"""GPU time by person and week."""

from datetime import datetime

import pytest

from loratory.engine.runs.run import RunState
from loratory.engine.runs.usage import (
    HALF_LIFE_SECONDS,
    Attempt,
    DecayedSeconds,
    UsageLedger,
    Week,
    ended_attempt,
    usage_by_week,
    week_of,
    weeks_of,
)
from tests.supervision.fake_runs import config_for

NOW = datetime(2026, 11, 26, 12).timestamp()
MONDAY = datetime(2026, 11, 23).timestamp()


def attempt(seconds: float = 100.0, ended: float = NOW, **changes: object) -> Attempt:
    values = {
        "owner": "ann",
        "run_id": "run-1",
        "attempt": 1,
        "device": "cuda:0",
        "began": ended - seconds,
        "ended": ended,
    }
    return Attempt(**{**values, **changes})


def decayed_seconds(*attempts: Attempt, weight=lambda _: 1.0, now: float = NOW) -> float:
    usage = DecayedSeconds(NOW)
    for attempt in attempts:
        usage.add(attempt)
    return usage.of_everyone(now, weight)["ann"]


def test_seconds_of_a_half_life_ago_count_half():
    assert decayed_seconds(attempt()) == pytest.approx(100, rel=1e-3)
    assert decayed_seconds(attempt(), now=NOW + HALF_LIFE_SECONDS) == pytest.approx(50, rel=1e-3)
    assert decayed_seconds(attempt(ended=NOW - 2 * HALF_LIFE_SECONDS)) == pytest.approx(25, rel=1e-3)


def test_a_long_attempt_decays_while_it_runs():
    whole = attempt(HALF_LIFE_SECONDS)
    halves = (attempt(HALF_LIFE_SECONDS / 2), attempt(HALF_LIFE_SECONDS / 2, NOW - HALF_LIFE_SECONDS / 2))

    assert decayed_seconds(whole) == pytest.approx(decayed_seconds(*halves))
    assert HALF_LIFE_SECONDS / 2 < decayed_seconds(whole) < HALF_LIFE_SECONDS


def test_every_device_counts_with_its_weight():
    two = attempt(device="cuda:0, cuda:3")

    assert decayed_seconds(two) == pytest.approx(200, rel=1e-3)
    assert decayed_seconds(two, weight={"cuda:0": 1.0, "cuda:3": 4.0}.__getitem__) == pytest.approx(500, rel=1e-3)


@pytest.mark.parametrize("device", ["1x Nvidia L4 at Hugging Face", "cpu-basic at Hugging Face", "Hugging Face", ""])
def test_a_job_elsewhere_counts_no_device(device):
    usage = DecayedSeconds(MONDAY)
    usage.add(attempt(device=device))

    assert attempt(device=device).devices == ()
    assert usage.of_everyone(MONDAY, lambda _: 1.0) == {}


def test_an_attempt_is_divided_at_the_end_of_a_week():
    across = attempt(ended=MONDAY + 60)

    assert list(weeks_of(across)) == [(Week(2026, 47), 40.0), (Week(2026, 48), 60.0)]
    assert week_of(datetime(2027, 1, 2).timestamp()) == Week(2026, 53)


def test_the_ledger_survives_a_restart_and_counts_an_attempt_once(home):
    home.server.mkdir()
    ledger = UsageLedger(home, lambda: NOW)
    ledger.add(attempt(3600))
    ledger.add(attempt(3600))
    again = UsageLedger(home, lambda: NOW)

    assert again.gpu_hours("ann", week_of(NOW)) == pytest.approx(1)
    assert again.run_seconds("run-1") == pytest.approx(3600)
    assert (home.server / "usage.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_torn_line_is_removed_and_the_rest_kept(home):
    home.server.mkdir()
    UsageLedger(home, lambda: NOW).add(attempt(3600))
    with (home.server / "usage.jsonl").open("ab") as file:
        file.write(b'{"owner": "ann", "run')
    UsageLedger(home, lambda: NOW).add(attempt(3600, run_id="run-2"))

    assert UsageLedger(home, lambda: NOW).gpu_hours("ann", week_of(NOW)) == pytest.approx(2)


def test_energy_is_that_of_the_attempt_alone_and_divided_among_weeks(home, store):
    run = store.create(config_for())
    before = RunState(state="running", attempt=2, device="cuda:0", attempt_started=MONDAY - 3600, energy_joules=1e6)
    after = before.model_copy(update={"state": "completed", "ended": MONDAY + 3600, "energy_joules": 8.2e6})
    ended = ended_attempt(run, before, after)

    assert ended is not None
    assert ended.joules == pytest.approx(7.2e6)
    weeks = usage_by_week(home, [ended, ended.model_copy(update={"run_id": "run-2", "joules": None})])
    assert [(entry.week, entry.owner, entry.gpu_hours, entry.kwh, entry.runs) for entry in weeks] == [
        (Week(2026, 48), "ann", pytest.approx(2), pytest.approx(1), 2),
        (Week(2026, 47), "ann", pytest.approx(2), pytest.approx(1), 2),
    ]
