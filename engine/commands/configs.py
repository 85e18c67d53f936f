"""`loratory presets` and `models`, and what CONFIG means: a YAML file, a preset's name, or a run's id."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from loratory.engine.commands.output import AsJson, print_json, print_table
from loratory.engine.config.load import config_from_mapping, mapping_from_file, with_overrides
from loratory.engine.config.presets import find_preset, list_presets
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, RunError, StorageError, shorten
from loratory.engine.models.catalog import search_catalog
from loratory.engine.paths import LoratoryHome, local_owner
from loratory.engine.quantities import count
from loratory.engine.runs.names import is_automatic
from loratory.engine.runs.store import RunStore


def load_config_argument(text: str, overrides: Sequence[str] | None, home: LoratoryHome) -> RunConfig:
    """Read what CONFIG names, apply `section.field=value` overrides, and check the whole.

    A name that looks like a file is one; otherwise presets come before runs. Raises as `load_config_mapping` does, and a
    ConfigError with every problem if any setting is wrong.
    """
    return config_from_mapping(load_config_mapping(text, overrides, home))


def load_config_mapping(text: str, overrides: Sequence[str] | None, home: LoratoryHome) -> dict[str, Any]:
    """Read what CONFIG names as plain nested values, before they are checked; an empty one leaves all to the overrides.

    Raises:
        ConfigError: If nothing bears that name, or an override is malformed.
        StorageError: If the file cannot be read, or no file can have that name.
    """
    return with_overrides(_mapping(text, home) if text else {}, overrides or ())


def _mapping(text: str, home: LoratoryHome) -> dict[str, Any]:
    path = named_path(text)
    looks_like_file = path.suffix.lower() in (".yaml", ".yml") or len(path.parts) > 1
    if looks_like_file or path.is_file():
        return mapping_from_file(path)
    try:
        return find_preset(text, home, kinds="file, preset or run").mapping()
    except ConfigError as no_preset:
        try:
            run = RunStore(home, local_owner()).get(text)
        except RunError:
            raise no_preset from None
    mapping = mapping_from_file(run.folder.config)
    section = mapping.get("run")
    if isinstance(section, dict) and is_automatic(str(section.get("name")), run.id):
        del section["name"]
    return mapping


def named_path(text: str | Path) -> Path:
    """Return the path that a person named, checked to be usable; it need not exist.

    Raises:
        StorageError: If nothing could be there: the name is too long, ~ names no user, or a folder on the way is closed.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:  # too long, closed; no such user; characters that no path has
        reason = shorten(getattr(error, "strerror", None) or str(error).rstrip("."))
        what = f"The path {shorten(str(text))} cannot be used ({reason})."
        raise StorageError(what, "Check its name and permissions.") from error
    return path


def presets(as_json: AsJson = False) -> None:
    """List the presets: start one with `loratory train NAME`."""
    all_presets = list_presets(LoratoryHome.locate())
    if as_json:
        facts = ("name", "title", "about", "memory_gib")
        configs = [preset.mapping() if preset.is_own else preset.load() for preset in all_presets]
        pairs = zip(all_presets, configs, strict=True)
        print_json([{fact: getattr(preset, fact) for fact in facts} | {"config": config} for preset, config in pairs])
    else:
        rows = [(preset.name, preset.device.partition(",")[0], preset.title) for preset in all_presets]
        print_table(("name", "device", "what it is"), rows)


def models(
    query: Annotated[str, typer.Argument(help="Words that must occur in the name or the description.")] = "",
    on_hub: Annotated[
        bool, typer.Option("--hub", help="Search the Hugging Face Hub instead of the catalogue.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List models that can be fine-tuned; any of their ids goes into model.id."""
    if on_hub:
        from loratory.engine.models.hub import search_hub

        rows = [
            model.model_dump(mode="json", exclude={"tags"})
            | {"license": model.license, "is_supported": model.is_supported}
            for model in search_hub(query)
        ]
    else:
        rows = [
            entry.model_dump(mode="json", exclude={"config"}) | {"about": " ".join((entry.about, *entry.notes))}
            for entry in search_catalog(query)
        ]
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo(f"No model matches {query!r}." + ("" if on_hub else " Add --hub to search the Hub."), err=True)
    for row in rows:
        typer.echo(_line(row))


def _line(row: dict[str, Any]) -> str:
    context = f"{row['context_length']:>9,}" if row.get("context_length") else f"{'':>9}"
    license_name = row.get("license") or ""
    gate = "gated" if row.get("gated") else ""
    parameters = count(row["parameters"]).replace(" ", "") if row.get("parameters") else ""  # as model names have it
    return f"{row['id']:<42}{parameters:>7}{context}  {license_name:<14}{gate:<6} {row.get('about', '')}".rstrip()


COMMANDS = (presets, models)
