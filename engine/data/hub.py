"""Rows of a dataset on the Hub, through the `datasets` library; no script of a repository is ever run."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from engine.config.dataset import DatasetConfig
from engine.data.access import shown_name
from engine.data.records import Record
from engine.errors import DatasetError

_MEDIA_FEATURES = ("Image", "Audio", "Video", "Pdf")


class HubRows:
    """A dataset on the Hub.

    Args:
        config: Names the dataset, and its subset, split and revision.
        streaming: Take rows as they come, for a preview; else the dataset is fetched and kept by `datasets`.

    Raises:
        DatasetError: If it cannot be reached, or does not exist, or has no such subset or split.
    """

    def __init__(self, config: DatasetConfig, *, streaming: bool) -> None:
        self.name = shown_name(config.source)
        self.kind = "Hub dataset"
        self.notes: list[str] = []
        self.size_bytes: int | None = None
        self.bytes_read = 0
        self._config = config
        self._streaming = streaming
        self._data = self._load()
        features = getattr(self._data, "features", None) or {}
        media = [name for name, feature in features.items() if type(feature).__name__ in _MEDIA_FEATURES]
        if media:
            self._data = self._data.remove_columns(media)
            self.notes.append(f"Columns that hold pictures or sound are not read: {', '.join(media)}.")
        self._total_rows: int | None = None if streaming else len(self._data)
        self.columns: tuple[str, ...] = tuple(name for name in features if name not in media)

    @property
    def total_rows(self) -> int | None:
        return self._total_rows

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Rows from `first_row` on.

        Raises:
            DatasetError: If the connection is lost on the way.
        """
        if self._streaming:
            rows: Any = self._data.skip(first_row) if first_row else self._data
        else:
            rows = (self._data[index] for index in range(first_row, len(self._data)))
        row = first_row
        try:
            for value in rows:
                yield Record(row, None, dict(value))
                row += 1
            self._total_rows = row
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from error

    def fingerprint(self) -> str:
        known = getattr(self._data, "_fingerprint", None)
        named = [self._config.source, self._config.subset, self._config.split, self._config.revision, known]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def _load(self) -> Any:
        datasets = _import_datasets()
        from datasets.exceptions import DatasetNotFoundError

        try:
            return datasets.load_dataset(
                self._config.source,
                self._config.subset,
                split=self._config.split,
                revision=self._config.revision,
                streaming=self._streaming,
            )
        except DatasetNotFoundError as error:
            raise DatasetError(
                f"There is no dataset {self.name} on the Hub, or it is private or gated.",
                "Check the name; for a gated one, accept its terms on the Hub and log in with `hf auth login`.",
            ) from error
        except ValueError as error:  # no such subset or split; the library's message lists those that exist
            raise DatasetError(
                f"{self.name} cannot be opened: {_first_line(error)}.", "Correct the subset or split."
            ) from error
        except RuntimeError as error:  # a repository that needs its own Python code
            raise DatasetError(
                f"{self.name} cannot be opened: {_first_line(error)}.", "Choose a dataset that is stored as files."
            ) from error
        except (OSError, TypeError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> DatasetError:
        return DatasetError(
            f"The dataset {self.name} is no file here, and the Hub cannot be reached ({type(error).__name__}).",
            "Check the path or the connection, or choose a file or one of the samples.",
        )


def _import_datasets() -> Any:
    """Import the library late, for it takes most of a second; and where torch is not here yet, without torch.

    Streamed rows would take torch in for a counter that only its data loaders share. `USE_TORCH` is the library's switch.
    """
    before = os.environ.get("USE_TORCH")
    if "torch" not in sys.modules:
        os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    finally:
        # Processes that are started from here may well need torch.
        if before is None:
            os.environ.pop("USE_TORCH", None)
        else:
            os.environ["USE_TORCH"] = before
    return datasets


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
