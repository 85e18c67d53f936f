"""A run learns from the data that it was filed with, in every attempt."""

from engine.config.dataset import DatasetConfig
from engine.data.contract import DatasetReport
from engine.errors import DatasetError
from engine.runs.provenance import read_provenance
from engine.runs.run import RunFolder


def require_pinned_data(folder: RunFolder, dataset: DatasetConfig, report: DatasetReport) -> None:
    """Refuse to train on other rows than were checked when the run was filed.

    Steps, held-out rows and the estimate were all drawn from those; after a resume, a checkpoint's place in the data would
    mean other rows.

    Raises:
        DatasetError: If the rows that are kept are not the same, in the same order.
    """
    pinned = read_provenance(folder).dataset_fingerprint
    if pinned is None or not report.fingerprint or pinned == report.fingerprint:
        return
    raise DatasetError(
        f"The rows of {dataset.source} are no longer those that this run was filed with; {report.kept:,} are usable now.",
        "Put the data back as it was and resume, or start a new run. For a dataset on the Hub, set dataset.revision.",
    )
