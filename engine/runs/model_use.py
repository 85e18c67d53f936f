"""Which models are in use in a lab, by runs, chats, evaluations and exports; these stay in the model cache."""

import contextlib
from collections.abc import Iterator, Mapping

from engine.errors import EngineError
from engine.hardware.device_job import models_in_use
from engine.models.cache_space import ModelUse
from engine.models.catalog import find_in_catalog
from engine.paths import LoratoryHome
from engine.runs.provenance import read_provenance
from engine.runs.store import RunStore, list_owners


def model_uses(home: LoratoryHome) -> Mapping[str, ModelUse]:
    """Return the use of each model by its id on the Hub, read from every run; milliseconds for a hundred of them.

    What else is at work now counts as need alone, as `owner/purpose`. A run whose state cannot be read counts as one that needs its model.
    """
    uses: dict[str, ModelUse] = {}
    for owner in list_owners(home):
        runs = []
        with contextlib.suppress(EngineError, OSError):  # a mount that is gone
            runs = RunStore(home, owner).list()
        for run in runs:
            provenance = read_provenance(run.folder)
            if provenance.model_source is None:
                continue
            is_over = False
            with contextlib.suppress(EngineError):
                is_over = run.folder.read_state().is_final
            use = uses.get(provenance.model_source, ModelUse())
            needed_by = use.needed_by if is_over else (*use.needed_by, f"{owner}/{run.id}")
            uses[provenance.model_source] = ModelUse(max(use.last, provenance.created), use.runs + 1, needed_by)
    for owner, name, purpose in _needed_now(home):
        use = uses.get(name, ModelUse())
        uses[name] = use._replace(needed_by=(*use.needed_by, f"{owner}/{purpose}"))
    return uses


def models_needed_by(runs: RunStore) -> set[str]:
    """Return the ids on the Hub of the models that one person's runs need, and what else is at work for them."""
    present = [run for run in runs.list() if not run.folder.read_state().is_final]
    sources = {read_provenance(run.folder).model_source for run in present}
    now = {name for owner, name, _ in _needed_now(runs.home) if owner == runs.owner}
    return {source for source in sources if source} | now


def _needed_now(home: LoratoryHome) -> Iterator[tuple[str, str, str]]:
    for work in models_in_use(home):
        entry = find_in_catalog(work.model)
        yield work.owner, entry.hub_id if entry is not None else work.model.strip(), work.purpose
