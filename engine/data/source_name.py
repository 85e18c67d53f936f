"""What the name of a dataset means, told without opening anything."""

from pathlib import Path

from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.data.file_endings import names_file
from engine.models.hub_id import is_hub_id
from engine.models.source import may_need_hub
from engine.processes.environment import Access


def is_on_hub(source: str) -> bool:
    """Return whether a name means a dataset on the Hub: it looks like an id and not like a file, and no file has it."""
    name = source.strip()
    return is_hub_id(name) and not names_file(name) and not _is_there(name)


def reads_from_hub(dataset: DatasetConfig) -> bool:
    """Return whether the dataset, or one that is mixed in, is on the Hub."""
    return any(map(is_on_hub, (dataset.source, *dataset.mix)))


def hub_access(model: ModelConfig, dataset: DatasetConfig | None = None) -> frozenset[Access]:
    """What a process may log in to that loads this model and reads this dataset: the Hub, where one of them may be there."""
    needs_hub = may_need_hub(model) or (dataset is not None and reads_from_hub(dataset))
    return frozenset({Access.HUB}) if needs_hub else frozenset()


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, a home that nobody has
        return False
