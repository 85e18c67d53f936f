"""The images of the next question: uploads that become images of the media store, and how they are shown."""

from collections.abc import Sequence
from pathlib import Path

from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.media.row_images import MAX_IMAGES
from loratory.engine.data.media.store import MAX_IMAGE_BYTES, MediaStore
from loratory.engine.data.records import RowProblemError
from loratory.engine.errors import ModelError
from loratory.ui.backend import conversation as talk
from loratory.ui.services import Services
from loratory.ui.views import chat as view


class QuestionImages:
    """Adds and shows images where the loaded model takes some; guests add none."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = MediaStore(services.home.media)

    def picture(self, ref: ImageRef) -> str:
        """Return the address of an image's small copy; empty where it is missing."""
        return talk.thumbnail(self._store, ref)

    def render(self, images: Sequence[ImageRef]) -> str:
        """Return the images of the next question with their buttons; empty for a model that takes none."""
        return view.render_attached(images, self.picture) if images or self._can_add() else ""

    def add(self, images: Sequence[ImageRef], paths: Sequence[str]) -> tuple[ImageRef, ...]:
        """Return the images of a question with uploaded ones.

        Raises:
            EngineError: If one cannot be read, there are too many, or the model takes none.
        """
        if not self._can_add():
            model = self._services.chat.state.model
            what = f"{model.name} takes text only." if model is not None else "No model is loaded."
            raise ModelError(what, "Load a vision-language model as a member of the lab, then add the image.")
        if len(images) + len(paths) > MAX_IMAGES:
            raise ModelError(f"A question has at most {MAX_IMAGES:,} images.", "Remove some.")
        return (*images, *map(self._add, map(Path, paths)))

    def _add(self, path: Path) -> ImageRef:
        with self._services.transfers.require_uploaded(path).open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
        self._services.transfers.require_quota(len(data))
        try:
            return self._store.add(data)
        except RowProblemError as error:
            what = f"{path.name[:80]} cannot be read: {error.problem}."
            raise ModelError(what, "Choose another image.") from error

    def _can_add(self) -> bool:
        model = self._services.chat.state.model
        return model is not None and model.takes_images and not self._services.home.is_guest
