"""A lab in simulated time: people, devices and runs, started by the real order, the real rules and the real plan."""

import functools
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loratory.engine.accounts.limits import LabLimits, LabRules
from loratory.engine.config.run import RunSection
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.lease import LeaseHolder, lease_name
from loratory.engine.lab.fairness import LabStanding, LabTurn, order_fairly, people_over_quota
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.usage import Attempt, DecayedSeconds, week_of, weeks_of
from loratory.engine.supervision.queue import StartRules, WaitingRun, plan_starts

OURSELVES = ProcessIdentity.current()
BEGIN = 1_790_000_000.0


@dataclass(frozen=True)
class SimulatedRun:
    """A run that arrives at some moment, in seconds from the beginning, and takes a while."""

    id: str
    owner: str
    arrival: float
    seconds: float
    devices: object = "auto"


@functools.cache
def _section(devices: object) -> RunSection:
    return RunSection(devices=devices)


@dataclass
class SimulatedLab:
    """Plays runs on devices until the last one has ended."""

    devices: Sequence[Device]
    limits: LabLimits = field(default_factory=LabLimits)
    urgent: str | None = None
    attempts: list[Attempt] = field(default_factory=list)  # in the order in which they began
    most_running: Counter[str] = field(default_factory=Counter)  # of each person at any moment

    def play(self, runs: Sequence[SimulatedRun]) -> list[Attempt]:
        """Return what ran when."""
        arrivals = sorted(runs, key=lambda run: (run.arrival, run.id))
        waiting: dict[str, SimulatedRun] = {}
        running: dict[str, tuple[SimulatedRun, float, tuple[Device, ...]]] = {}
        ends: list[tuple[float, str]] = []
        past_use, rules = DecayedSeconds(BEGIN), LabRules(limits=self.limits)
        weeks: dict[tuple[str, object], float] = defaultdict(float)
        while arrivals or ends or waiting:
            upcoming = [*([arrivals[0].arrival + BEGIN] if arrivals else []), *([ends[0][0]] if ends else [])]
            assert upcoming, f"{sorted(waiting)} never start"
            now = min(upcoming)
            while arrivals and arrivals[0].arrival + BEGIN <= now:
                run = arrivals.pop(0)
                waiting[run.id] = run
            while ends and ends[0][0] <= now:
                run, began, devices = running.pop(heapq.heappop(ends)[1])
                attempt = self._attempt(run, began, now, devices)
                self.attempts.append(attempt)
                past_use.add(attempt)
                for week, seconds in weeks_of(attempt):
                    weeks[run.owner, week] += seconds * attempt.gpus / 3600
            present = DecayedSeconds(now)
            week = week_of(now)
            hours = {owner: weeks[owner, week] for owner in {run.owner for run in waiting.values()}}
            for run, began, devices in running.values():
                present.add(self._attempt(run, began, now, devices))
            used = past_use.of_everyone(now, self.limits.weight)
            for person, seconds in present.of_everyone(now, self.limits.weight).items():
                used[person] = used.get(person, 0.0) + seconds
            standing = LabStanding(used, Counter(run.owner for run, *_ in running.values()), hours, self.urgent)
            lines: dict[str, list[str]] = defaultdict(list)
            for run_id in sorted(waiting):
                lines[waiting[run_id].owner].append(run_id)
            order = order_fairly(lines, standing, people_over_quota(rules, standing))
            holders = {
                lease_name(device): LeaseHolder(
                    purpose="training", title=run.id, process=OURSELVES, run_id=run.id, owner=run.owner
                )
                for run, _, devices in running.values()
                for device in devices
            }
            queue = [
                WaitingRun(
                    run_id, _section(waiting[run_id].devices), None, owner=waiting[run_id].owner,
                    is_urgent=run_id == self.urgent,
                )
                for run_id in self._first_of_each(order, waiting)
            ]  # fmt: skip
            turn = LabTurn(rules, standing, order, {run_id: run.owner for run_id, run in waiting.items()})
            for run_id, chosen in plan_starts(queue, self.devices, holders, StartRules(turn.hold)).starts.items():
                run = waiting.pop(run_id)
                running[run_id] = run, now, chosen
                heapq.heappush(ends, (now + run.seconds, run_id))
            for person, count in Counter(run.owner for run, *_ in running.values()).items():
                self.most_running[person] = max(self.most_running[person], count)
        return sorted(self.attempts, key=lambda attempt: (attempt.began, attempt.run_id))

    def _first_of_each(self, order: Sequence[str], waiting: Mapping[str, SimulatedRun]) -> Iterator[str]:
        """Leave out what cannot start now: a plan for all of a thousand runs takes long."""
        counts: Counter[tuple[str, object]] = Counter()
        for run_id in order:
            run = waiting[run_id]
            counts[run.owner, run.devices] += 1
            if counts[run.owner, run.devices] <= len(self.devices):
                yield run_id

    def _attempt(self, run: SimulatedRun, began: float, ended: float, devices: tuple[Device, ...]) -> Attempt:
        names = ", ".join(map(lease_name, devices))
        return Attempt(owner=run.owner, run_id=run.id, attempt=1, device=names, began=began, ended=ended)


def seconds_by_person(attempts: Sequence[Attempt], until: float) -> dict[str, float]:
    """Return the GPU seconds of each person up to a moment."""
    sums: dict[str, float] = defaultdict(float)
    for attempt in attempts:
        sums[attempt.owner] += max(min(attempt.ended, until) - attempt.began, 0.0) * len(attempt.devices)
    return sums
