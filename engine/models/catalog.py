"""Models that people commonly fine-tune, and the architectures that transformers knows: without a network or an import of it."""

import ast
import contextlib
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, JsonValue, TypeAdapter, computed_field

from loratory.engine.models.families.registry import family_of


class CatalogEntry(BaseModel, frozen=True, extra="forbid"):
    """One model of the catalogue; what is not known for certain is left out."""

    id: str  # what ModelConfig.id takes
    hub_id: str
    title: str
    family: str
    about: str  # one line
    parameters: int  # exact, tied weights counted once
    license: str  # identifier as the Hub shows it
    gated: bool | None = None  # whether the Hub asks for accepting terms first; None where that changes
    is_instruct: bool  # tuned for conversation, with a chat template of its own
    stacked_experts: bool = False  # in single parameters, which get no adapter and are not quantized
    untrainable: str = ""  # why it cannot be trained as it is published, and what to take instead
    config: Mapping[str, JsonValue]  # the part of config.json that decides sizes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def context_length(self) -> int | None:
        """Longest sequence in tokens that the model was made for, by its configuration."""
        text = self.config.get("text_config")
        value = (text if isinstance(text, dict) else self.config).get("max_position_embeddings")
        return value if isinstance(value, int) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before anything is fetched, a sentence each: consent, and what cannot be trained."""
        consent = ("The Hub asks for your consent first.",) if self.gated else ()
        experts = (
            ("Experts get no adapter and stay in 16 bits.",) if self.stacked_experts and not self.untrainable else ()
        )
        warning = (f"Cannot be trained as published. {self.untrainable}",) if self.untrainable else ()
        return (*consent, *experts, *warning)


@functools.cache
def list_catalog() -> tuple[CatalogEntry, ...]:
    """Return the whole catalogue: the demo model first, then by number of parameters."""
    return TypeAdapter(tuple[CatalogEntry, ...]).validate_json(Path(__file__).with_name("catalog.json").read_bytes())


def find_in_catalog(model_id: str) -> CatalogEntry | None:
    """Return the entry of exactly this name or Hub id, whatever its case."""
    key = model_id.strip().casefold()
    return next((entry for entry in list_catalog() if entry.id.casefold() == key), None)


def search_catalog(query: str) -> tuple[CatalogEntry, ...]:
    """Return entries with every word of `query` in name, family, licence or description; all for an empty one.

    Names that contain the query itself come first, then names that hold all of them, then mere mentions.
    """
    phrase = " ".join(query.casefold().split())
    terms = phrase.split()
    entries = []
    for entry in list_catalog():
        name = f"{entry.id} {entry.title}".casefold()
        text = f"{name} {entry.hub_id} {entry.family} {entry.license} {entry.about}".casefold()
        ranks = (phrase in name, all(word in name for word in terms), all(word in text for word in terms))
        if any(ranks):
            entries.append((ranks.index(True), entry))
    return tuple(entry for _, entry in sorted(entries, key=lambda pair: pair[0]))


def is_known_model_type(model_type: str) -> bool:
    """Return whether transformers has this `model_type` built in; True also where that cannot be found out.

    This is a courtesy that refuses early; the process that loads a model has the last word.
    """
    types = _table("CONFIG_MAPPING_NAMES")
    return not types or model_type in types


def is_causal_lm(model_type: str) -> bool:
    """Return whether transformers can build a model that writes text of this `model_type`; True where that cannot be found out."""
    types = _table("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    return not types or model_type in types or family_of({"model_type": model_type}) is not None


@functools.cache
def _table(name: str) -> frozenset[str]:
    # Importing transformers pulls in torch, which the light rooms must not; finding it does not import it.
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(spec.submodule_search_locations[0]) / "models" / "auto"
    keys: set[str] = set()
    for file in ("auto_mappings.py", "configuration_auto.py", "modeling_auto.py"):
        with contextlib.suppress(FileNotFoundError):
            source = (folder / file).read_text(encoding="utf-8")
            lines = source.splitlines()
            for statement in ast.parse(source).body:
                # The table is assigned, or its update method is called.
                if re.match(rf"{name}\b", lines[statement.lineno - 1]):
                    keys.update(_keys_in(statement))
    return frozenset(keys)


def _keys_in(statement: ast.stmt) -> Iterator[str]:
    """Yield the string keys of `OrderedDict([("key", …), …])` and of `{"key": …}`, in whatever nesting."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant):
            yield str(node.elts[0].value)
        elif isinstance(node, ast.Dict):
            yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))
