"""`loratory models`: the catalogue, and with `--hub` what the Hub has."""

from typing import Annotated, Any

import typer

from engine.commands.output import AsJson, print_json
from engine.models.catalog import search_catalog


def models(
    query: Annotated[str, typer.Argument(help="Words that must occur in the name or the description.")] = "",
    on_hub: Annotated[
        bool, typer.Option("--hub", help="Search the Hugging Face Hub instead of the catalogue.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List models that can be fine-tuned; any of their ids goes into model.id."""
    if on_hub:
        from engine.models.hub import search_hub

        rows = [
            model.model_dump(mode="json", exclude={"tags"})
            | {"license": model.license, "is_supported": model.is_supported}
            for model in search_hub(query)
        ]
    else:
        rows = [entry.model_dump(mode="json", exclude={"config"}) for entry in search_catalog(query)]
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
    return f"{row['id']:<42}{_short_count(row.get('parameters')):>7}{context}  {license_name:<14}{gate:<6} {row.get('about', '')}".rstrip()


def _short_count(parameters: int | None) -> str:
    """As model names say it: 135M, 1.7B, 70.6B."""
    if parameters is None:
        return ""
    if parameters < 999_500_000:
        return f"{parameters / 1e6:.0f}M"
    return f"{parameters / 1e9:.1f}B"


COMMANDS = (models,)
