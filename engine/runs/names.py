"""Names of runs: two words for each id, names made of them, and the labels by which lists tell runs apart."""

import re
import zlib

from loratory.engine.config.run import RunConfig

_ADJECTIVES = """
    agile amber ample azure bold brave breezy bright brisk calm candid cheery clever cosmic cozy crisp dapper daring deft
    eager early fair fleet fond frank fresh gentle glad golden grand happy hardy honest humble jolly keen kind lively loyal
    lucky mellow merry mighty modest neat nimble noble plucky polite proud quick quiet rapid royal serene silver snug sunny
    swift tidy vivid warm wise witty
""".split()
_ANIMALS = """
    ant badger bat bear beaver bee bison camel cat cobra condor crab crane deer dingo dove duck eagle egret falcon ferret
    finch fox gecko goat goose hare hawk heron horse ibex ibis jay koala lark lemur lion llama lynx macaw marten mole moose
    newt orca otter owl panda parrot pony puffin puma quail rabbit raven robin seal shark sloth swan tiger toad whale wombat
""".split()
WORD_PAIRS = len(_ADJECTIVES) * len(_ANIMALS)
_LONGEST_PART = 40


def words_of(run_id: str) -> str:
    """Return the two words of a run, such as `brisk-otter`; the same id has the same words everywhere."""
    animal, adjective = divmod(zlib.crc32(run_id.encode()) % WORD_PAIRS, len(_ADJECTIVES))
    return f"{_ADJECTIVES[adjective]}-{_ANIMALS[animal]}"


def automatic_name(config: RunConfig, run_id: str) -> str:
    """Return a name for a run that was given none: data, method and its two words, as in `faq-lora-brisk-otter`."""
    data = last_part(config.dataset.source).removeprefix("loratory-").partition(".")[0]
    parts = (re.sub(r"[\W_]+", "-", text.lower()).strip("-")[:_LONGEST_PART] for text in (data, config.method_name))
    return "-".join(filter(None, (*parts, words_of(run_id))))


def is_automatic(name: str, run_id: str) -> bool:
    """Return whether a name was made for this run, so no other run has it."""
    return name.endswith(f"-{words_of(run_id.rpartition('/')[2])}")  # that of a shared run is OWNER/ID


def run_label(name: str, run_id: str) -> str:
    """Return a name as lists show it; one that other runs may have too is followed by the end of the id."""
    return name if is_automatic(name, run_id) else f"{name} · {run_id[-4:]}"


def last_part(source: str) -> str:
    """Return the last part of a path or of a name on the Hub, and the name of a sample or a set."""
    return source.removeprefix("sample:").removeprefix("set:").rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
