"""Which models the runs of all people of a lab use: what runs need stays in the model cache."""

import contextlib
from collections.abc import Mapping

from engine.errors import EngineError
from engine.models.cache_space import ModelUse
from engine.paths import LoratoryHome
from engine.runs.provenance import read_provenance
from engine.runs.store import RunStore, list_owners


def model_uses(home: LoratoryHome) -> Mapping[str, ModelUse]:
    """Return the use of each model by its id on the Hub, read from every run; milliseconds for a hundred of them.

    A run whose state cannot be read counts as one that needs its model.
    """
    uses: dict[str, ModelUse] = {}
    for owner in list_owners(home):
        runs = []
        with contextlib.suppress(EngineError, OSError):  # a mount that is gone
            runs = RunStore(home, owner).list()
        for run in runs:
            known = read_provenance(run.folder)
            if known.model_source is None:
                continue
            is_over = False
            with contextlib.suppress(EngineError):
                is_over = run.folder.read_state().is_final
            use = uses.get(known.model_source, ModelUse())
            needed_by = use.needed_by if is_over else (*use.needed_by, f"{owner}/{run.id}")
            uses[known.model_source] = ModelUse(max(use.last, known.created), use.runs + 1, needed_by)
    return uses
