"""The queue of a lab: which run starts next, what delays runs whose device is free, and the urgent slot."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from loratory.engine.accounts.limits import LabRules
from loratory.engine.accounts.people import Action, Person, require
from loratory.engine.errors import RunError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock
from loratory.engine.runs.run import Run, RunFolder, StateReason
from loratory.engine.supervision.queue import WaitingRun

# A run that was put first counts as an hour until it has run: two devices that become free together go to two people,
# and people without a running run come before those with one.
COUNTED_AHEAD_SECONDS = 3600.0


@dataclass(frozen=True)
class LabStanding:
    """The values that determine the order of a lab's queue."""

    # Of each person: GPU time of running and ended attempts, weighted and decayed.
    used_seconds: Mapping[str, float] = field(default_factory=dict)
    running: Mapping[str, int] = field(default_factory=dict)  # runs of each person that have a device
    week_hours: Mapping[str, float] = field(default_factory=dict)  # GPU-hours of each person in this week
    urgent: str | None = None  # the run in the urgent slot


def order_fairly(
    lines: Mapping[str, Sequence[str]], standing: LabStanding, over_quota: Collection[str] = ()
) -> list[str]:
    """Return the ids of all waiting runs, the next to start first.

    The urgent run comes first, then people with the least recent GPU time, then age. Runs of people over their weekly
    quota come last. Within a person, the order is that of `lines`, which the person chose. Ids sort by age.
    """
    ranking: list[tuple[bool, float, str, str]] = []
    for person, line in lines.items():
        seconds = standing.used_seconds.get(person, 0.0)
        ahead = standing.running.get(person, 0)
        # The age of a position is that of the person's oldest runs: moving a newer one forward costs them nothing.
        for position, (run_id, age) in enumerate(zip(line, sorted(line), strict=True)):
            ranking.append((person in over_quota, seconds + (ahead + position) * COUNTED_AHEAD_SECONDS, age, run_id))
    order = [run_id for *_, run_id in sorted(ranking)]
    return sorted(order, key=lambda run_id: run_id != standing.urgent)  # stable


def people_over_quota(rules: LabRules, standing: LabStanding) -> frozenset[str]:
    """Return the people who used more GPU time this week than the soft quota."""
    quota = rules.limits.weekly_gpu_hours
    return frozenset(who for who, hours in standing.week_hours.items() if quota is not None and hours >= quota)


@dataclass(frozen=True)
class LabTurn:
    """A snapshot of the queue of a lab."""

    rules: LabRules
    standing: LabStanding  # what each person has used
    order: Sequence[str]  # all waiting runs, the next to start first
    owners: Mapping[str, str]  # of the waiting runs, by id
    # Free on the disk of the home, where that is less than the lab keeps free; else None.
    free_disk_gb: float | None = None

    def known(self, waiting: WaitingRun) -> WaitingRun:
        """Return a waiting run with the lab's details."""
        is_urgent = waiting.run_id == self.standing.urgent
        return waiting._replace(owner=self.owners[waiting.run_id], is_urgent=is_urgent)

    def hold(self, waiting: WaitingRun, starting: Collection[str]) -> StateReason | None:
        """Return why a run waits; None where it may start, given the runs that start before it."""
        maintenance, limits = self.rules.maintenance, self.rules.limits
        if maintenance.is_on:
            return StateReason("maintenance", f"The lab starts no runs at present. {maintenance.text}".rstrip())
        if self.free_disk_gb is not None:
            what = f"The disk has {self.free_disk_gb:,.1f} GB free; runs start from {limits.free_disk_gb:g} GB."
            return StateReason("free_disk", what, "Delete runs that are no longer needed, or ask an admin for space.")
        most = limits.running_per_person
        if most is None or waiting.is_urgent or waiting.section.is_elsewhere:
            return None
        running = self.standing.running.get(waiting.owner, 0)
        running += sum(self.owners.get(run_id) == waiting.owner for run_id in starting)
        if running < most:
            return None
        runs = "1 of your runs is" if running == 1 else f"{running:,} of your runs are"
        return StateReason("running_cap", f"{runs} running; the lab allows {most:,} per person.")


def lab_reasons(
    reasons: Mapping[str, StateReason], queue: Iterable[WaitingRun], rules: LabRules, standing: LabStanding
) -> dict[str, StateReason]:
    """Return the reasons of a plan, with the weekly quota for runs that it moved back."""
    quota, over_quota = rules.limits.weekly_gpu_hours, people_over_quota(rules, standing)
    owners = {waiting.run_id: waiting.owner for waiting in queue}
    result = dict(reasons)
    for run_id, why in reasons.items():
        owner = owners.get(run_id, "")
        if owner in over_quota and why.reason == "other_persons_run":
            what = f"You used {standing.week_hours[owner]:,.1f} of {quota:g} GPU-hours this week. {why.cause}"
            advice = "It starts when no other person waits for the device, or on Monday."
            result[run_id] = StateReason("weekly_quota", what, advice)
    return result


_LONGEST_WHY = 120


class UrgentRun(BaseModel, frozen=True):
    """The run in the slot, who put it there, and why; all people of the lab read this."""

    owner: str
    run_id: str
    by: str = ""
    why: str = ""

    @property
    def text(self) -> str:
        """Why it goes first."""
        reason = f" ({self.why})" if self.why else ""
        return f"Goes first: {self.by or 'an admin'} made it urgent{reason}."


class UrgentSlot:
    """Holds one run at most; it is empty again as soon as that run no longer waits."""

    def __init__(self, home: LoratoryHome) -> None:
        self._runs = home.runs
        self._path = home.server / "urgent.json"
        self._lock_path = home.server / "urgent.lock"

    def run(self) -> UrgentRun | None:
        """Return the run in the slot; None where it is empty."""
        slot = read_model(self._path, UrgentRun)
        if slot is None:
            return None
        folder = RunFolder(self._runs / slot.owner / slot.run_id)
        return slot if folder.path.is_dir() and folder.read_state().state == "queued" else None

    def put(self, person: Person, run: Run, why: str = "") -> None:
        """Make a waiting run the first of the queue; all people of the lab see why, in up to 120 characters.

        Raises:
            AccountError: If the person may not.
            RunError: If the run does not wait, or another one has the slot.
            StorageError: If that cannot be saved.
        """
        require(person, Action.USE_URGENT_SLOT)
        with FileLock(self._lock_path):
            state = run.folder.read_state().state
            if state != "queued":
                raise RunError(f"{run.id} is {state} and does not wait.", "Only waiting runs can be urgent.")
            present = self.run()
            if present is not None and present.run_id != run.id:
                raise RunError("Another run is urgent already.", "Wait until it has started, or clear it.")
            text = "".join(sign for sign in " ".join(why.split()) if sign.isprintable())[:_LONGEST_WHY]
            slot = UrgentRun(owner=run.owner, run_id=run.id, by=person.name, why=text)
            write_atomically(self._path, slot.model_dump_json())

    def clear(self, person: Person) -> None:
        """Empty the slot; its run waits for its turn again. Raises an AccountError if the person may not."""
        require(person, Action.USE_URGENT_SLOT)
        with FileLock(self._lock_path):
            self._path.unlink(missing_ok=True)
