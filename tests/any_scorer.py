"""A scorer by its settings, as a configuration has them."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from loratory.engine.scoring.base import Scorer
from loratory.engine.scoring.registry import AnyScorer

_ADAPTER: TypeAdapter[Scorer] = TypeAdapter(AnyScorer)


def scorer_from(settings: Mapping[str, Any]) -> Scorer:
    """Return the scorer that `settings["scorer"]` names."""
    return _ADAPTER.validate_python(settings)
