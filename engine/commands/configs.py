"""`loratory presets` and `models`: what runs can begin as."""

from typing import Annotated, Any

import typer

from loratory.engine.commands.output import AsJson, print_json, print_table
from loratory.engine.config.presets import list_presets
from loratory.engine.models.catalog import search_catalog
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import count


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
