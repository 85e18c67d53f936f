"""What must be known of the tensors to say what surrounds them."""

from typing import NamedTuple


class TensorsAtPeak(NamedTuple):
    """Bytes.

    Attributes:
        allocated_bytes: All tensors that are alive.
        passing_bytes: Of these, activations and what the loss needs: what comes and goes within a step.
        layer_bytes: How high one layer reaches, forward and backward together, above what is alive around it.
        paged_bytes: Optimizer state in memory that the driver moves.
        mapped_bytes: Weights in mapped files that quantized ones were made from, and that stay mapped for others' sake.
        uncertain_bytes: Of the passing ones, how many more there may be where layers are not played in detail.
    """

    allocated_bytes: int
    passing_bytes: int = 0
    layer_bytes: int = 0
    paged_bytes: int = 0
    mapped_bytes: int = 0
    uncertain_bytes: int = 0
