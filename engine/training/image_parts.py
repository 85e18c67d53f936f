"""The parts of a vision-language model: which of them are trained, and that the others stay as they were loaded."""

import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from loratory.engine.config.vision import PartTraining, VisionConfig
from loratory.engine.models.families.base import ImageFamily, is_within

_ATTRIBUTE = "_loratory_image_parts"  # of a model


@dataclass(frozen=True)
class ImageParts:
    """Where the parts of a model are, and how those that see images are trained."""

    family: ImageFamily
    vision: VisionConfig

    def attach(self, base: Any) -> None:
        """Note on a loaded model how its parts are trained, for `image_parts_of`."""
        setattr(base, _ATTRIBUTE, self)

    @property
    def outside_language_model(self) -> list[str]:
        """Paths of the modules that see images."""
        return [self.family.tower, *self.family.projectors]

    def training_of(self, name: str) -> PartTraining | None:
        """Return how the part is trained that a module or weight of the base is in; None in the language model and its head."""
        return self.vision.training_of(self.family.part_of(name))

    def is_adapted(self, name: str) -> bool:
        """Return whether the adapter goes to a module of the base."""
        return self.training_of(name) in (None, "adapter")

    def saved_modules(self, model: Any) -> list[str]:
        """Return the largest modules of which every weight is trained by itself."""
        tower = self._tower_modules(model) if self.vision.tower == "full" else []
        projectors = [name for path in self.family.projectors for name in _modules(model, path, ())]
        return tower + (projectors if self.vision.projector == "full" else [])

    def freeze(self, base: Any) -> None:
        """Keep frozen parts of the base in evaluation mode, and without gradients where nothing before them is trained."""
        frozen = self._tower_modules(base) if self.vision.tower == "frozen" else []
        without_gradient = set(frozen)
        if self.vision.projector == "frozen":
            projectors = [name for path in self.family.projectors for name in _modules(base, path, ())]
            frozen += projectors
            if self.vision.tower == "frozen":
                without_gradient.update(projectors)
        for name in frozen:
            module = base.get_submodule(name).eval()
            module.train = types.MethodType(_stay_in_evaluation, module)
            if name in without_gradient:
                module.forward = torch.no_grad()(module.forward)

    def _tower_modules(self, model: Any) -> list[str]:
        return _modules(model, self.family.tower, self.family.projectors)

    def target_expression(self, names: Sequence[str], available: Sequence[str]) -> str | list[str]:
        """Return PEFT's `target_modules` for full names among the available ones: an expression where it has just these."""
        parts = [self.family.language_model, *self.outside_language_model]
        targets = [part for part in parts if any(is_within(name, [part]) for name in names)]
        endings = sorted({name.rpartition(".")[2] for name in names})
        others = "".join(rf"(?!{re.escape(part)}\.)" for part in parts if part not in targets)
        expression = (
            rf"{others}(?:{'|'.join(map(re.escape, targets))})\.(?:.*\.)?(?:{'|'.join(map(re.escape, endings))})"
        )
        matches = [name for name in available if re.fullmatch(expression, name)]
        return expression if matches == list(names) else list(names)


def model_class_of(family: ImageFamily | None) -> Any:
    """Return the class that loads a model with its head, by its family; None is that of text models."""
    return AutoModelForCausalLM if family is None else AutoModelForImageTextToText


def image_parts_of(base: Any) -> ImageParts | None:
    """Return the parts of a vision-language model below any PEFT wrapper; None of a text model."""
    parts: ImageParts | None = getattr(base, _ATTRIBUTE, None)
    return parts


def language_model_of(base: Any) -> Any:
    """Return the language model in a vision-language model, without its head; a text model as it is."""
    parts = image_parts_of(base)
    return base if parts is None else base.get_submodule(parts.family.language_model)


def trained_vision(model: Any) -> Sequence[torch.nn.Parameter]:
    """Return the trained weights of a model, with its adapter if it has one, that see images."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = image_parts_of(base)
    if parts is None or not parts.vision.trains_part:
        return []
    return [p for name, p in base.named_parameters() if p.requires_grad and parts.training_of(name) is not None]


def _modules(model: Any, path: str, excluded: Sequence[str]) -> list[str]:
    """Return the largest modules with weights at a path, each of which can be called, without the excluded ones."""
    module = model.get_submodule(path)
    if path in excluded or next(module.parameters(), None) is None:
        return []
    has_excluded = any(is_within(other, [path]) for other in excluded)
    if not has_excluded and not isinstance(module, torch.nn.ModuleList):
        return [path]
    return [name for child, _ in module.named_children() for name in _modules(model, f"{path}.{child}", excluded)]


def _stay_in_evaluation(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:  # noqa: ARG001
    return module
