"""The datasets of one person, and the runs that used each: sets, votes, uploads, and what runs read from the Hub."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable

import yaml

from loratory.engine.config.run import SET_PREFIX
from loratory.engine.data.hub import is_on_hub
from loratory.engine.data.workshop.sets import former_names
from loratory.engine.evaluation.votes import Votes, pairs_of_votes
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import JsonObject
from loratory.engine.runs.store import RunStore

VOTES = "votes"  # as a source: what `Votes.snapshot` makes
_SECTION = re.compile(r"^dataset:\n((?: .*\n)*)", re.MULTILINE)
_MOST = 200  # uploads


def dataset_uses(runs: RunStore) -> dict[str, dict[str, list[str]]]:
    """Return the runs that used each dataset by its version, oldest first; sets by their names of now, and all else without versions."""
    uses: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    names = {f"{SET_PREFIX}{old}": f"{SET_PREFIX}{now}" for old, now in former_names(runs.home).items()}
    for run_id in reversed(runs.ids()):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
            section = _SECTION.search((runs.folder / run_id / "config.yaml").read_text(encoding="utf-8"))
            settings = yaml.load(section[1], yaml.CSafeLoader) if section else {"source": "-"}
            for source in (settings["source"], *(settings.get("mix") or ())):
                name, _, version = source.partition("@") if source.startswith(SET_PREFIX) else (source, "", "")
                uses[names.get(name, name)][version].append(run_id)
    return uses


def list_datasets(home: LoratoryHome, runs: RunStore, sets: Iterable[JsonObject]) -> list[JsonObject]:
    """Return the datasets of a person with rows, bytes and the runs that used each, as far as known; `sets` are described."""
    uses = dataset_uses(runs)
    datasets = [{"kind": "set", "source": f"{SET_PREFIX}{entry['name']}", **entry} for entry in sets]
    if not home.is_guest and (votes := len(pairs_of_votes(Votes(home).read()).rows)):
        datasets.append({"kind": "votes", "source": VOTES, "name": "Votes", "rows": votes})
    for path in sorted(home.uploads.glob("*"))[:_MOST] if not home.is_guest else ():
        datasets.append({"kind": "upload", "source": str(path), "name": path.name, "bytes": path.stat().st_size})
    datasets += ({"kind": "hub", "source": name, "name": name} for name in filter(is_on_hub, reversed(uses)))
    uses[VOTES][""] = [run for name in [*uses] if name.startswith(f"{home.uploads}/votes-") for run in uses[name][""]]
    for entry in datasets:
        entry["runs"] = sorted({run for part in uses.get(entry["source"], {}).values() for run in part})
        if "rows" not in entry and entry["runs"]:
            report = runs.get(entry["runs"][-1]).folder.read_dataset_report()
            entry["rows"] = {part.source: part.rows for part in report.parts}.get(entry["source"]) if report else None
    return datasets
