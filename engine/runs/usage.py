"""Device use and electricity: every attempt at a run, even of deleted runs, with sums by person and week."""

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field, StringConstraints

from loratory.engine.config.load import section_from_mapping
from loratory.engine.errors import StorageError
from loratory.engine.files import append_model, read_model, read_models, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.run import Run, RunState
from loratory.engine.runs.summary import RunSummary
from loratory.engine.section import Section, setting

HALF_LIFE_SECONDS = 7 * 24 * 3600.0
_KEPT_SECONDS = 400 * 24 * 3600.0
_FILE = "usage.jsonl"
_DEVICE = re.compile(r"cpu|mps|cuda:\d+")
_JOULES_PER_KWH = 3.6e6

_log = logging.getLogger(__name__)


def local_devices(text: str) -> tuple[str, ...]:
    """Return the lease names in `RunState.device`; those of an executor elsewhere have none."""
    return tuple(part for part in text.split(", ") if _DEVICE.fullmatch(part))


class Attempt(BaseModel, frozen=True):
    """One attempt at a run: its devices belonged to its owner from `began` to `ended`, in seconds since the epoch."""

    owner: str
    run_id: str
    attempt: int
    device: str  # as in `RunState`: "cpu", "cuda:0, cuda:1"; other texts are of executors elsewhere, and count nothing
    began: float
    ended: float
    joules: float | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """Lease names of the devices of this machine that it had."""
        return local_devices(self.device)

    @property
    def gpus(self) -> int:
        """How many of them are GPUs."""
        return sum(device != "cpu" for device in self.devices)

    @property
    def seconds(self) -> float:
        """How long it had them."""
        return max(self.ended - self.began, 0.0)


def live_attempt(run: Run, state: RunState, now: float) -> Attempt | None:
    """Return the attempt that a run makes at present; None where it has no device yet."""
    if state.is_final or state.state == "queued" or state.attempt_started is None:
        return None
    return Attempt(
        owner=run.owner, run_id=run.id, attempt=state.attempt, device=state.device, began=state.attempt_started, ended=now
    )  # fmt: skip


def ended_attempt(run: Run, before: RunState, after: RunState) -> Attempt | None:
    """Return the attempt between two states of a run; None where it never had a device."""
    if before.attempt_started is None or not before.device:
        return None
    joules = None if after.energy_joules is None else max(after.energy_joules - (before.energy_joules or 0.0), 0.0)
    return Attempt(
        owner=run.owner, run_id=run.id, attempt=before.attempt, device=before.device, began=before.attempt_started,
        ended=after.ended or time.time(), joules=joules,
    )  # fmt: skip


class DecayedSeconds:
    """Seconds by person and device; those of a half-life ago count half."""

    def __init__(self, reference: float) -> None:
        self._reference = reference
        self._sums: dict[tuple[str, str], float] = {}  # as they count at the reference

    def add(self, attempt: Attempt) -> None:
        """Count an attempt: the integral of its decaying seconds."""
        for device in attempt.devices:
            key, began = (attempt.owner, device), min(attempt.began, attempt.ended)
            self._sums[key] = self._sums.get(key, 0.0) + self._until(attempt.ended) - self._until(began)

    def of_everyone(self, now: float, weight: Callable[[str], float]) -> dict[str, float]:
        """Return the weighted seconds of each person as they count now."""
        decay = math.exp2((self._reference - now) / HALF_LIFE_SECONDS)
        totals: dict[str, float] = {}
        for (owner, device), seconds in self._sums.items():
            totals[owner] = totals.get(owner, 0.0) + seconds * decay * weight(device)
        return totals

    def _until(self, moment: float) -> float:
        return HALF_LIFE_SECONDS / math.log(2) * math.exp2((moment - self._reference) / HALF_LIFE_SECONDS)


class Week(NamedTuple):
    """A week from Monday, as ISO 8601 numbers them."""

    year: int
    number: int


def week_of(moment: float) -> Week:
    """Return the week of a moment, by this machine's calendar."""
    year, number, _ = datetime.fromtimestamp(moment).isocalendar()
    return Week(year, number)


def _end_of_week(moment: float) -> float:
    then = datetime.fromtimestamp(moment)
    midnight = then.replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight + timedelta(days=7 - then.weekday())).timestamp()


def weeks_of(attempt: Attempt) -> Iterator[tuple[Week, float]]:
    """Yield the weeks of an attempt, and its seconds in each."""
    moment = attempt.began
    while True:
        end = min(_end_of_week(moment), attempt.ended)
        yield week_of(moment), max(end - moment, 0.0)
        if end >= attempt.ended or end <= moment:
            return
        moment = end


class UsageLedger:
    """The ended attempts of a home, in a file that survives restarts and the deletion of runs.

    An attempt is added before its end is saved, so one that a crash kept out is ended, and added, again.
    """

    def __init__(self, home: LoratoryHome, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._path = home.server / _FILE
        now = clock()
        self._oldest = now - _KEPT_SECONDS
        self._counted_attempts: set[tuple[str, int]] = set()
        self._gpu_seconds: dict[tuple[str, Week], float] = {}
        self._run_seconds: dict[str, float] = {}
        self.decayed = DecayedSeconds(now)
        if self._path.exists():  # written again without old attempts and a line that a power cut tore
            attempts = [attempt for attempt in read_models(self._path, Attempt) if self._count(attempt)]
            with contextlib.suppress(StorageError):  # a full disk: at the next start
                write_atomically(self._path, "".join(f"{attempt.model_dump_json()}\n" for attempt in attempts))

    def add(self, attempt: Attempt) -> None:
        """Count an ended attempt once; if the file cannot be written, it is lost at the next start."""
        if self._count(attempt):
            try:
                self._path.touch(mode=0o600)
                append_model(self._path, attempt, "The used GPU time could not be saved", "Free some space.")
            except (StorageError, OSError) as error:
                _log.error("%s: %s", attempt.run_id, error)

    def gpu_hours(self, owner: str, week: Week) -> float:
        """Return the hours on GPUs of a person's ended attempts in a week."""
        return self._gpu_seconds.get((owner, week), 0.0) / 3600

    def run_seconds(self, run_id: str) -> float:
        """Return how long the ended attempts at a run took."""
        return self._run_seconds.get(run_id, 0.0)

    def _count(self, attempt: Attempt) -> bool:
        attempt_key = attempt.run_id, attempt.attempt
        if attempt_key in self._counted_attempts or attempt.ended < self._oldest:
            return False
        self._counted_attempts.add(attempt_key)
        self.decayed.add(attempt)
        self._run_seconds[attempt.run_id] = self.run_seconds(attempt.run_id) + attempt.seconds
        if attempt.gpus:
            for week, seconds in weeks_of(attempt):
                person_week = attempt.owner, week
                self._gpu_seconds[person_week] = self._gpu_seconds.get(person_week, 0.0) + seconds * attempt.gpus
        return True


@dataclass(frozen=True)
class WeekOfPerson:
    """The use of one person in one week."""

    owner: str
    week: Week  # of ISO 8601
    gpu_hours: float  # hours times GPUs
    cpu_hours: float  # hours of runs on the processor
    kwh: float | None  # as the GPUs measured it; None where none did
    runs: int  # that had a device in this week


def usage_by_week(home: LoratoryHome, running: Iterable[Attempt] = ()) -> tuple[WeekOfPerson, ...]:
    """Return what each person used in each week, the newest week first; `running` are the attempts at present."""
    sums: dict[tuple[Week, str], tuple[float, float, float | None, set[str]]] = {}
    seen_attempts: set[tuple[str, int]] = set()
    for attempt in (*read_models(home.server / _FILE, Attempt), *running):
        if (attempt.run_id, attempt.attempt) in seen_attempts:
            continue
        seen_attempts.add((attempt.run_id, attempt.attempt))
        for week, seconds in weeks_of(attempt):
            gpu, cpu, kwh, runs = sums.get((week, attempt.owner), (0.0, 0.0, None, set[str]()))
            gpu += seconds * attempt.gpus / 3600
            cpu += seconds / 3600 if "cpu" in attempt.devices else 0.0
            if attempt.joules is not None and attempt.seconds > 0:
                kwh = (kwh or 0.0) + attempt.joules / _JOULES_PER_KWH * seconds / attempt.seconds
            sums[(week, attempt.owner)] = gpu, cpu, kwh, runs | {attempt.run_id}
    return tuple(
        WeekOfPerson(owner, week, gpu, cpu, kwh, len(runs))
        for (week, owner), (gpu, cpu, kwh, runs) in sorted(sums.items(), reverse=True, key=lambda item: item[0])
    )


class Electricity(Section):
    """`electricity.json` in the home: a price, and what the machine draws where no meter reports it."""

    price_per_kwh: Annotated[float, Field(ge=0, le=1000)] | None = setting(None, "Price of a kilowatt-hour")
    """As on your bill. Empty shows no cost."""
    currency: Annotated[str, StringConstraints(max_length=8, pattern=r"^[^\x00-\x1f\x7f]*$")] = setting("", "Currency")
    """A sign or a code, such as € or USD."""
    watts: Annotated[float, Field(gt=0, le=1_000_000)] | None = setting(
        None, "Power of the machine while it trains, in watts"
    )
    """Counts where no GPU has measured its energy, as on a CPU. Empty leaves such runs without a cost."""


class Cost(NamedTuple):
    """What a run has cost so far."""

    amount: float
    currency: str  # a sign or a code; may be empty


class RunEnergy(NamedTuple):
    """Electricity of one run."""

    kwh: float
    cost: float | None  # None where no price is set
    is_measured: bool  # by the GPUs themselves; else from the stated power


def read_electricity(home: LoratoryHome) -> Electricity:
    """Return the settings; empty if the file is missing or unreadable."""
    return read_model(home.root / "electricity.json", Electricity) or Electricity()


def save_electricity(home: LoratoryHome, price_per_kwh: object, currency: object, watts: object) -> Electricity:
    """Check and save the settings for all runs of this home.

    Raises:
        ConfigError: Lists every value that is out of bounds.
        StorageError: If the home cannot be written.
    """
    values = {"price_per_kwh": price_per_kwh, "currency": str(currency or "").strip(), "watts": watts}
    electricity = section_from_mapping(Electricity, values)
    write_atomically(home.root / "electricity.json", electricity.model_dump_json(indent=1))
    return electricity


def energy_of(summary: RunSummary, electricity: Electricity) -> RunEnergy | None:
    """Return the energy and cost of an ended run; None if neither a meter nor a stated power is known."""
    if summary.energy_joules is not None:
        kwh, is_measured = summary.energy_joules / _JOULES_PER_KWH, True
    elif electricity.watts is not None and summary.seconds is not None:
        kwh, is_measured = electricity.watts * summary.seconds / _JOULES_PER_KWH, False
    else:
        return None
    cost = None if electricity.price_per_kwh is None else kwh * electricity.price_per_kwh
    return RunEnergy(kwh, cost, is_measured)


def energy_words(summary: RunSummary, electricity: Electricity) -> str:
    """`0.41 kWh, € 0.12 (measured by the GPU)`; empty where nothing is known."""
    energy = energy_of(summary, electricity)
    if energy is None:
        return ""
    text = f"{energy.kwh:.3g} kWh"
    if energy.cost is not None:
        cost = f"{energy.cost:.2f}" if energy.cost >= 0.005 or energy.cost == 0 else "0.01"
        under = "under " if cost == "0.01" and energy.cost < 0.005 else ""
        text += f", {under}{electricity.currency} {cost}".replace("  ", " ")
    source = "measured by the GPU" if energy.is_measured else f"at the stated {electricity.watts:g} W"
    return f"{text} ({source})"
