"""Whose run starts next in a lab, in simulated time."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from loratory.engine.accounts.limits import LabLimits, LabRules, Maintenance
from loratory.engine.config.run import RunSection
from loratory.engine.hardware.lease import LeaseHolder
from loratory.engine.lab.fairness import LabStanding, LabTurn, lab_reasons, order_fairly, people_over_quota
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.run import StateReason
from loratory.engine.supervision.queue import StartRules, WaitingRun, plan_starts
from tests.lab.simulated_lab import BEGIN, SimulatedLab, SimulatedRun, seconds_by_person
from tests.supervision.fake_runs import gpu

WEEK = 7 * 24 * 3600.0
TWO_GPUS = (gpu(0), gpu(1))
NO_CAP = LabLimits(running_per_person=None)


def waiting(run_id: str, owner: str, **changes: object) -> WaitingRun:
    return WaitingRun(run_id, RunSection(), None, owner=owner)._replace(**changes)


def test_who_used_least_lately_comes_first_then_age():
    lines = {"ann": ["run-1"], "bob": ["run-2"], "cleo": ["run-3"]}

    assert order_fairly(lines, LabStanding({"ann": 50.0, "bob": 7.0})) == ["run-3", "run-2", "run-1"]
    assert order_fairly(lines, LabStanding()) == ["run-1", "run-2", "run-3"]


def test_people_take_turns_where_no_one_has_used_anything():
    lines = {"ann": ["run-1", "run-2", "run-3"], "bob": ["run-4", "run-5"]}

    assert order_fairly(lines, LabStanding()) == ["run-1", "run-4", "run-2", "run-5", "run-3"]


def test_a_persons_own_order_holds_within_that_person_and_moves_no_other():
    bob = ["run-2", "run-4"]
    before = order_fairly({"ann": ["run-1", "run-3"], "bob": bob}, LabStanding())
    after = order_fairly({"ann": ["run-3", "run-1"], "bob": bob}, LabStanding())

    assert before == ["run-1", "run-2", "run-3", "run-4"]
    assert after == ["run-3", "run-2", "run-1", "run-4"]


def test_the_urgent_run_comes_before_all():
    lines = {"ann": ["run-1", "run-3"], "bob": ["run-2"]}
    standing = LabStanding({"ann": 1e6}, urgent="run-3", week_hours={"ann": 99})

    assert order_fairly(lines, standing, over_quota={"ann"})[0] == "run-3"


def test_two_devices_that_are_free_together_go_to_two_people():
    runs = [SimulatedRun(f"ann-{number}", "ann", 0, 1000) for number in range(5)]
    attempts = SimulatedLab(TWO_GPUS, NO_CAP).play([*runs, SimulatedRun("bob-0", "bob", 0, 1000)])

    assert {attempt.owner for attempt in attempts[:2]} == {"ann", "bob"}


@pytest.mark.exhaustive(quick=0)
def test_twenty_people_with_a_thousand_runs_share_two_gpus_within_5_percent():
    rng = random.Random(7)
    people = [f"person-{number:02}" for number in range(20)]
    # Some bring everything at once, some in small runs as they go, some long ones: 50 each, and always enough to do.
    typical = {person: rng.uniform(1350, 2600) for person in people}
    runs = []
    for person in people:
        at_once = rng.random() < 0.5
        for number in range(50):
            seconds = max(300.0, rng.gauss(typical[person], typical[person] / 4))
            arrival = 0.0 if at_once or number < 3 else number * typical[person] * 2
            runs.append(SimulatedRun(f"{number:02}-{person}", person, arrival, seconds))
    assert len(runs) == 1000

    attempts = SimulatedLab(TWO_GPUS).play(runs)

    until = BEGIN + WEEK
    assert all(max(attempt.ended for attempt in attempts if attempt.owner == person) > until for person in people), (
        "has enough to do"
    )
    shares, equal = seconds_by_person(attempts, until), WEEK * len(TWO_GPUS) / len(people)
    assert sum(shares.values()) == pytest.approx(WEEK * len(TWO_GPUS)), "no GPU is idle while runs wait"
    worst = max(abs(shares[person] / equal - 1) for person in people)
    assert worst < 0.05, sorted((round(share / equal, 3), person) for person, share in shares.items())


def test_a_person_over_the_weekly_quota_runs_only_when_no_other_waits():
    limits = LabLimits(running_per_person=None, weekly_gpu_hours=1)
    runs = [SimulatedRun(f"ann-{number}", "ann", 0, 3600) for number in range(3)]
    others = [SimulatedRun(f"bob-{number}", "bob", 10, 900) for number in range(3)]
    attempts = SimulatedLab((gpu(0),), limits).play([*runs, *others])

    assert [attempt.run_id for attempt in attempts] == ["ann-0", "bob-0", "bob-1", "bob-2", "ann-1", "ann-2"]


def random_lab(rng: random.Random) -> tuple[SimulatedLab, list[SimulatedRun]]:
    """Make a lab of one to three GPUs with random limits, and runs of up to five people."""
    gpus = rng.randint(1, 3)
    limits = LabLimits(
        running_per_person=rng.choice([None, 1, 2, 3]), weekly_gpu_hours=rng.choice([None, rng.uniform(0.1, 5)])
    )
    runs = [
        SimulatedRun(
            f"run-{number:03}", rng.choice("abcde"), rng.uniform(0, 20_000), rng.uniform(1, 9_000),
            rng.choice(["auto", "auto", (0,), (gpus - 1,), tuple(range(gpus))]),
        )
        for number in range(rng.randint(1, 25))
    ]  # fmt: skip
    return SimulatedLab(tuple(gpu(index) for index in range(gpus)), limits), runs


@pytest.mark.parametrize("block", range(10))
def test_every_run_runs_once_devices_are_never_shared_and_caps_never_exceeded(block):
    for seed in range(block * 15, block * 15 + 15):
        lab, runs = random_lab(random.Random(seed))
        attempts = lab.play(runs)  # fails where a run never starts

        assert sorted(attempt.run_id for attempt in attempts) == sorted(run.id for run in runs), seed
        cap = lab.limits.running_per_person
        assert cap is None or max(lab.most_running.values()) <= cap, seed
        for device in {name for attempt in attempts for name in attempt.devices}:
            in_turn = sorted((attempt.began, attempt.ended) for attempt in attempts if device in attempt.devices)
            assert all(before[1] <= after[0] for before, after in pairwise(in_turn)), seed


def test_a_newcomer_waits_for_one_run_at_most_however_many_runs_another_queued():
    for seed in range(40):
        rng = random.Random(seed)
        theirs, mine = rng.uniform(100, 4000), rng.uniform(100, 4000)
        runs = [SimulatedRun(f"ann-{number:02}", "ann", 0, theirs) for number in range(rng.randint(1, 40))]
        attempts = SimulatedLab((gpu(0),), NO_CAP).play([*runs, SimulatedRun("bob-00", "bob", theirs / 2, mine)])

        began = next(attempt.began for attempt in attempts if attempt.owner == "bob")
        assert began <= BEGIN + theirs + 1e-6, seed


def hold_for(
    limits: LabLimits = NO_CAP, standing: LabStanding | None = None, **changes: object
) -> Callable[..., StateReason | None]:
    owners = {"run-1": "ann", "run-2": "ann", "run-3": "bob"}
    rules = LabRules(limits=limits, maintenance=changes.pop("maintenance", Maintenance()))
    return LabTurn(rules, standing or LabStanding(), (), owners, **changes).hold


def test_a_cap_counts_what_runs_and_what_is_about_to_and_lets_others_pass():
    hold = hold_for(LabLimits(running_per_person=1))
    queue = [waiting("run-1", "ann"), waiting("run-2", "ann"), waiting("run-3", "bob")]

    plan = plan_starts(queue, TWO_GPUS, {}, StartRules(hold))

    assert list(plan.starts) == ["run-1", "run-3"]
    assert plan.reasons["run-2"] == ("running_cap", "1 of your runs is running; the lab allows 1 per person.", "")
    assert hold_for(LabLimits(running_per_person=1), LabStanding(running={"ann": 1}))(queue[0], ()) is not None


def test_the_urgent_run_passes_the_cap_of_its_owner():
    hold = hold_for(LabLimits(running_per_person=1), LabStanding(running={"ann": 1}))

    assert hold(waiting("run-1", "ann", is_urgent=True), ()) is None


def test_a_job_elsewhere_takes_no_place_of_its_owner():
    hold = hold_for(LabLimits(running_per_person=1), LabStanding(running={"ann": 1}))

    assert hold(waiting("run-1", "ann", section=RunSection(where="jobs")), ()) is None
    assert hold(waiting("run-1", "ann"), ()) is not None


def test_maintenance_holds_every_run_and_shows_its_text():
    hold = hold_for(maintenance=Maintenance(is_on=True, text="Driver update until 14:00."))
    text = "The lab starts no runs at present. Driver update until 14:00."

    assert hold(waiting("run-1", "ann", is_urgent=True), ()) == ("maintenance", text, "")


def test_a_disk_that_is_nearly_full_holds_every_run_with_the_values():
    why = hold_for(free_disk_gb=8.06)(waiting("run-1", "ann"), ())

    assert why is not None
    assert why[:2] == ("free_disk", "The disk has 8.1 GB free; runs start from 10 GB.")


def test_what_a_run_waits_for_never_names_what_is_in_another_persons_run():
    secret = LeaseHolder(
        purpose="training", title="SECRET", process=ProcessIdentity.current(), run_id="SECRET-ID", owner="bob"
    )
    queue = [waiting("run-1", "ann"), waiting("SECRET-3", "bob"), waiting("run-2", "ann")]

    plan = plan_starts(queue, TWO_GPUS[:1], {"cuda:0": secret})
    behind = plan_starts(queue[1:], TWO_GPUS[:1], {})
    urgent = plan_starts([queue[1]._replace(is_urgent=True), queue[2]], TWO_GPUS[:1], {})

    assert plan.reasons["run-1"] == ("device_in_use", "GPU 0 is in use by bob for training.", "")
    assert "SECRET" in plan.reasons["SECRET-3"].cause, "the owner may know"
    assert behind.reasons["run-2"] == (
        "other_persons_run", "A run of bob comes first.", "Next is the person who used least GPU time lately."
    )  # fmt: skip
    assert urgent.reasons["run-2"] == ("urgent_run", "An urgent run of bob comes first.", "")


def test_a_run_over_quota_reads_how_much_was_used():
    rules, standing = LabRules(limits=LabLimits(weekly_gpu_hours=40)), LabStanding(week_hours={"ann": 41.23, "bob": 3})
    reasons = {"run-1": StateReason("other_persons_run", "A run of bob comes first.")}

    assert people_over_quota(rules, standing) == {"ann"}
    assert lab_reasons(reasons, [waiting("run-1", "ann")], rules, standing)["run-1"] == (
        "weekly_quota",
        "You used 41.2 of 40 GPU-hours this week. A run of bob comes first.",
        "It starts when no other person waits for the device, or on Monday.",
    )


def test_other_programs_on_a_gpu_are_waited_for_unless_the_person_starts_anyway():
    busy = StateReason("other_program", "GPU 0 is in use outside Loratory (process 7).")
    rules = StartRules(program_use={"cuda:0": busy})

    assert plan_starts([waiting("run-1", "ann")], TWO_GPUS[:1], {}, rules).reasons["run-1"] == busy
    assert list(plan_starts([waiting("run-1", "ann")], TWO_GPUS, {}, rules).starts.values()) == [(TWO_GPUS[1],)]
    assert plan_starts([waiting("run-1", "ann", starts_anyway=True)], TWO_GPUS[:1], {}, rules).starts
