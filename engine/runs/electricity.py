"""The electricity cost of a run, if a price is set; never a guess."""

from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field, StringConstraints

from engine.config.load import section_from_mapping
from engine.files import read_model, write_atomically
from engine.paths import LoratoryHome
from engine.runs.summary import RunSummary

_JOULES_PER_KWH = 3.6e6


class Electricity(BaseModel, frozen=True):
    """`electricity.json` in the home: a price, and what the machine draws where no meter reports it."""

    price_per_kwh: Annotated[float, Field(ge=0, le=1000)] | None = Field(
        default=None, title="Price of a kilowatt-hour", description="As on your bill. Empty shows no cost."
    )
    currency: Annotated[str, StringConstraints(max_length=8, pattern=r"^[^\x00-\x1f\x7f]*$")] = Field(
        default="", title="Currency", description="A sign or a code, such as € or USD."
    )
    watts: Annotated[float, Field(gt=0, le=1_000_000)] | None = Field(
        default=None,
        title="Power of the machine while it trains, in watts",
        description="Counts where no GPU has measured its energy, as on a CPU. Empty leaves such runs without a cost.",
    )


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
    words = f"{energy.kwh:.3g} kWh"
    if energy.cost is not None:
        cost = f"{energy.cost:.2f}" if energy.cost >= 0.005 or energy.cost == 0 else "0.01"
        under = "under " if cost == "0.01" and energy.cost < 0.005 else ""
        words += f", {under}{electricity.currency} {cost}".replace("  ", " ")
    source = "measured by the GPU" if energy.is_measured else f"at the stated {electricity.watts:g} W"
    return f"{words} ({source})"
