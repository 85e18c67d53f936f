"""Paths that mean the same in every process: a run is trained, resumed and evaluated elsewhere than where it was filed."""

from collections.abc import Mapping

from engine.config.adapter import AdapterConfig
from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.config.run import RunConfig
from engine.config.section import Section
from engine.data.source import SAMPLE_PREFIX
from engine.models.catalog import find_in_catalog
from engine.paths import typed_path
from engine.runs.store import RUN_ID


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration with whatever is a file or folder here named by its whole path.

    Names of samples, of the catalogue and on the Hub stay as they are, and so does what is not there: its refusal shall
    repeat what was typed.
    """
    model, dataset, adapter = config.model, config.dataset, config.adapter
    sections: dict[str, Section] = {}
    if find_in_catalog(model.id.strip()) is None:
        sections["model"] = model.model_copy(update={"id": _absolute(model.id, _longest(ModelConfig, "id"))})
    longest = _longest(DatasetConfig, "source")
    sections["dataset"] = dataset.model_copy(
        update={"source": _absolute_source(dataset.source, longest), "mix": _absolute_mix(dataset.mix, longest)}
    )
    if adapter.warm_start is not None and not RUN_ID.match(adapter.warm_start):
        start = _absolute(adapter.warm_start, _longest(AdapterConfig, "warm_start"))
        sections["adapter"] = adapter.model_copy(update={"warm_start": start})
    return config.model_copy(update=sections)


def _absolute_mix(mix: Mapping[str, float], longest: int) -> dict[str, float]:
    """Two names of one file keep apart, for each has its weight."""
    absolute: dict[str, float] = {}
    for source, weight in mix.items():
        path = _absolute_source(source, longest)
        absolute[source if path in absolute else path] = weight
    return absolute


def _absolute_source(source: str, longest: int) -> str:
    return source if source.strip().startswith(SAMPLE_PREFIX) else _absolute(source, longest)


def _absolute(text: str, longest: int) -> str:
    try:
        path = typed_path(text.strip())
        if not path.exists():
            return text
        # A link keeps its name, unless going up leads through it.
        whole = str(path.resolve() if ".." in path.parts else path.absolute())
    except (OSError, RuntimeError, ValueError):  # a name that no file can have; ~name of nobody
        return text
    return whole if len(whole) <= longest else text


def _longest(section: type[Section], field: str) -> int:
    bounds = (getattr(bound, "max_length", None) for bound in section.model_fields[field].metadata)
    return next((bound for bound in bounds if bound is not None), 1000)
