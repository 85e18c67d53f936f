"""All scorers: each class in a module of `scorers/` that has a Literal name."""

import functools
import operator
import pkgutil
import typing
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from loratory.engine.scoring import scorers
from loratory.engine.scoring.base import Scorer

SCORERS: Mapping[str, type[Scorer]] = {
    name: kind
    for module in sorted(info.name for info in pkgutil.iter_modules(scorers.__path__))
    for kind in vars(import_module(f"{scorers.__name__}.{module}")).values()
    if isinstance(kind, type) and issubclass(kind, Scorer)
    for name in typing.get_args(kind.model_fields["scorer"].annotation)
}

if TYPE_CHECKING:
    AnyScorer = Scorer
else:
    AnyScorer = Annotated[functools.reduce(operator.or_, SCORERS.values()), Field(discriminator="scorer")]
