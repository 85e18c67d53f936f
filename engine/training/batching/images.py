"""The images of the rows of a pass, as the model takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.media.store import MediaStore
from loratory.engine.models.families.worker.processor import ImageProcessor


@dataclass(frozen=True)
class ImageInputs:
    """Opens images and makes tensors of them, for runs whose rows have some."""

    processor: ImageProcessor
    store: MediaStore

    def tensors(self, images: Sequence[Sequence[ImageRef]], input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what a pass takes in addition to tokens; {} where none of its rows has an image.

        Args:
            images: Those of each row, in order.
            input_ids: Tokens of the rows, padded, (rows, longest).
        """
        opened = {ref.digest: self.store.open(ref) for refs in images for ref in refs}
        if not opened:
            return {}
        tensors = self.processor.tensors([[opened[ref.digest] for ref in refs] for refs in images])
        return tensors | self.processor.token_tensors(input_ids.tolist())
