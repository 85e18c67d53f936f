"""Settings of row checks."""

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from loratory.engine.section import Section, setting

OWN_PHRASES = Path(__file__).with_name("refusals.txt").read_text(encoding="utf-8")


class CheckSettings(Section):
    """Thresholds of row checks, and what they compare with."""

    over: Literal["prompts", "answers", "both"] = setting("both", "Compare")
    """Turns that duplicates, near_duplicates and leakage compare. System prompts are never compared, plain text always."""
    similarity: float = setting(0.3, "Similarity from", ge=0.2, le=1.0)
    """Share of all pairs of words that both texts have, from which they are near-duplicates. 0.3 finds two words of ten changed and most with three, 0.6 one."""
    score_below: float = setting(0.5, "Score below", ge=-1000, le=1000)
    """quality finds answers that the scorers of the dataset rate lower; 1 is full marks of all of them."""
    against: str | None = setting(None, "Leaks from")
    """A dataset that must not be trained on, such as a benchmark: leakage finds rows that contain its prompts."""
    refusals: str | None = setting(None, "Phrases of refusals", max_length=50_000, examples=[OWN_PHRASES])
    """Phrases in place of Loratory's own, in lines such as refusal: I cannot help with | I can't help with."""
    language_characters: int = setting(60, "Min characters for a language", ge=20, le=10_000)
    """Shorter turns get no language. Letters outside ASCII count two to four characters."""
    language_probability: float = setting(0.95, "Min probability of a language", ge=0.5, le=1.0)
    """Turns whose language is less certain than this get none."""
    phone_regions: str = setting("US,GB,DE,FR", "Phone regions", pattern=r"^[A-Z]{2}(,[A-Z]{2}){0,9}$")
    """Countries whose national phone numbers are found. International ones, with +, are found from everywhere."""

    @field_validator("phone_regions")
    @classmethod
    def _refuse_unknown_regions(cls, regions: str) -> str:
        from phonenumbers import SUPPORTED_REGIONS  # only checks need its tables

        if unknown := set(regions.split(",")) - SUPPORTED_REGIONS:
            raise ValueError(
                f"no phone numbers are known of {', '.join(sorted(unknown))}; give ISO codes such as US or GB."
            )
        return regions
