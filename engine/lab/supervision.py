"""A supervisor's tasks in a lab: order the queue fairly, count GPU time, enforce limits, publish the queue."""

import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from loratory.engine.accounts.lab import RulesReader
from loratory.engine.accounts.limits import LabRules
from loratory.engine.errors import EngineError, StorageError
from loratory.engine.files import write_atomically
from loratory.engine.hardware.cuda import GpuProgram, list_gpu_programs
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.lease import LeaseHolder, device_words, lease_name
from loratory.engine.lab.fairness import LabStanding, LabTurn, UrgentSlot, order_fairly, people_over_quota
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs import usage
from loratory.engine.runs.control import request_stop_for_time
from loratory.engine.runs.disk import free_bytes
from loratory.engine.runs.run import Reason, Run, RunState, StateReason
from loratory.engine.supervision.queue import QueueOrder, StartRules

SNAPSHOT_FILE = "lab-queue.json"

ActiveRuns = Mapping[str, tuple[Run, RunState]]  # by id
ListPrograms = Callable[[int], Sequence[GpuProgram]]

_log = logging.getLogger(__name__)


class QueuedRun(BaseModel, frozen=True):
    """A run in the queue of a lab; `cause` may name the owner's own runs, and is for the owner alone."""

    owner: str
    run_id: str
    reason: Reason | None = None
    cause: str = ""


class QueueSnapshot(BaseModel, frozen=True):
    """`lab-queue.json`: the queue as last seen by the supervisor."""

    waiting: tuple[QueuedRun, ...] = ()
    active: tuple[tuple[str, str], ...] = ()  # owner and id


@dataclass
class LabSupervision:
    """Follows the queue of a lab; does nothing in a home without accounts."""

    home: LoratoryHome
    programs: ListPrograms = list_gpu_programs
    clock: Callable[[], float] = time.time  # seconds since the epoch
    _published: QueueSnapshot | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._rules = RulesReader(self.home)
        self._slot = UrgentSlot(self.home)

    def note_end(self, run: Run, before: RunState, after: RunState) -> None:
        """Count an attempt that has ended."""
        attempt = usage.ended_attempt(run, before, after)
        if attempt is not None and self._rules.read() is not None:
            self._ledger.add(attempt)

    def take_turn(self, waiting: Mapping[str, Run], active: ActiveRuns) -> LabTurn | None:
        """Return the current order of runs, after stopping those at their time limit; None without accounts."""
        rules = self._rules.read()
        if rules is None:
            return None
        now, live = self.clock(), list[usage.Attempt]()
        for run, state in active.values():
            attempt = usage.live_attempt(run, state, now)
            if attempt is not None:
                live.append(attempt)
                if attempt.devices:  # a job elsewhere has no device of the lab
                    self._enforce_time(run, attempt, rules)
        owners = {run_id: run.owner for run_id, run in waiting.items()}
        standing = self._standing(rules, active, live, set(owners.values()))
        lines = {
            owner: self._own_order(owner, [run_id for run_id in owners if owners[run_id] == owner])
            for owner in set(owners.values())
        }
        order = order_fairly(lines, standing, people_over_quota(rules, standing))
        free_gb = free_bytes(self.home) / 10**9
        return LabTurn(rules, standing, order, owners, free_gb if free_gb < rules.limits.free_disk_gb else None)

    def start_rules(self, turn: LabTurn, devices: Sequence[Device], holders: Mapping[str, LeaseHolder]) -> StartRules:
        """Return the lab's reasons to delay runs, in addition to leases and memory."""
        program_use: dict[str, StateReason] = {}
        for device in devices if turn.rules.limits.waits_for_other_programs else ():
            name = lease_name(device)
            if device.kind == "cuda" and name not in holders:
                programs = self.programs(device.index)
                if programs:
                    program_use[name] = _program_reason(name, programs)
        return StartRules(turn.hold, program_use)

    def publish(self, turn: LabTurn, reasons: Mapping[str, StateReason], active: ActiveRuns) -> None:
        """Save the queue for pages, where it has changed."""
        waiting = []
        for run_id in turn.order:
            if run_id not in active:
                reason, cause, _ = reasons.get(run_id, StateReason(None, ""))
                waiting.append(QueuedRun(owner=turn.owners[run_id], run_id=run_id, reason=reason, cause=cause))
        at_work = tuple((run.owner, run.id) for run, _ in active.values())
        snapshot = QueueSnapshot(waiting=tuple(waiting), active=at_work)
        if snapshot == self._published:
            return
        try:
            write_atomically(self.home.server / SNAPSHOT_FILE, snapshot.model_dump_json(exclude_defaults=True))
        except StorageError as error:
            _log.error("The queue of the lab could not be published: %s", error)
            return
        self._published = snapshot

    @functools.cached_property
    def _ledger(self) -> usage.UsageLedger:
        return usage.UsageLedger(self.home, self.clock)

    def _standing(
        self, rules: LabRules, active: ActiveRuns, live: Iterable[usage.Attempt], people: Collection[str]
    ) -> LabStanding:
        now, ledger, weight = self.clock(), self._ledger, rules.limits.weight
        present, week = usage.DecayedSeconds(now), usage.week_of(now)
        hours = {person: ledger.gpu_hours(person, week) for person in people}
        for attempt in live:
            present.add(attempt)
            if attempt.owner in hours:
                hours[attempt.owner] += attempt.gpus * dict(usage.weeks_of(attempt)).get(week, 0.0) / 3600
        used_seconds = ledger.decayed.of_everyone(now, weight)
        for person, seconds in present.of_everyone(now, weight).items():
            used_seconds[person] = used_seconds.get(person, 0.0) + seconds
        urgent = None
        with contextlib.suppress(EngineError):
            urgent = self._slot.run()
        return LabStanding(
            used_seconds,
            Counter(run.owner for run, state in active.values() if usage.local_devices(state.device)),
            hours,
            urgent.run_id if urgent is not None else None,
        )

    def _own_order(self, owner: str, run_ids: Sequence[str]) -> list[str]:
        """Return a person's waiting runs in their own order, or that of the command line if the page has none."""
        own = QueueOrder(self.home.for_person(owner))
        return (own if own.is_saved else QueueOrder(self.home)).sort(run_ids)

    def _enforce_time(self, run: Run, attempt: usage.Attempt, rules: LabRules) -> None:
        limits, seconds = rules.limits, attempt.seconds
        hours = limits.longest_run_hours
        if run.owner in rules.guests and limits.guest_run_hours is not None:
            seconds += self._ledger.run_seconds(run.id)
            hours = min(limits.guest_run_hours, hours or limits.guest_run_hours)
        if hours is not None and seconds >= hours * 3600:
            try:
                request_stop_for_time(run.folder, hours)
            except EngineError as error:
                _log.error("%s could not be stopped at its maximum run time: %s", run.id, error)


def _program_reason(name: str, programs: Sequence[GpuProgram]) -> StateReason:
    names = ", ".join(program.description for program in programs[:3])
    what = f"{device_words(name)} is in use outside Loratory ({names})."
    return StateReason("other_program", what, "It starts when they have ended. “Start anyway” does not wait for them.")
