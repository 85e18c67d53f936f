"""Settings of models that take images; text models ignore them."""

from typing import Literal

from loratory.engine.section import Section, setting

PartTraining = Literal["frozen", "adapter", "full"]


class VisionConfig(Section):
    """How large images may be, and which parts that see them are trained."""

    min_pixels: int | None = setting(None, "Min pixels", ge=1, le=1_000_000_000)
    """Smaller images are enlarged to so many pixels. Empty keeps the model's own."""
    max_pixels: int | None = setting(None, "Max pixels", ge=784, le=1_000_000_000)
    """Larger images are reduced to so many pixels, which take fewer tokens. Empty keeps the model's own."""
    do_image_splitting: bool | None = setting(None, "Split images")
    """Cuts large images into tiles, which show details and take more tokens. Empty keeps the model's own."""
    tower: PartTraining = setting("frozen", "Vision tower")
    """frozen keeps it, adapter adds the method's adapter to it, full trains its weights. frozen suits most tasks."""
    projector: PartTraining = setting("frozen", "Projector")
    """What turns the tower's output into tokens. full suits images that look unlike photos."""

    @property
    def pixels(self) -> "VisionConfig":
        """The settings that decide what an image becomes, without those of training."""
        return self.model_copy(update={"tower": "frozen", "projector": "frozen"})

    @property
    def trains_part(self) -> bool:
        """Whether tower or projector is trained."""
        return (self.tower, self.projector) != ("frozen", "frozen")

    def training_of(self, part: Literal["tower", "projector"] | None) -> PartTraining | None:
        """Return how a part is trained; None for the language model."""
        return None if part is None else self.tower if part == "tower" else self.projector


MODELS_OWN = VisionConfig()  # sizes of images are those of the model, and what sees them is frozen
