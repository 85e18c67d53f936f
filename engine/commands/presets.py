"""`loratory presets`: the fine-tunes that ship with the program."""

from typing import Annotated

import typer

from engine.commands.output import print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the command to the `loratory` program."""
    app.command("presets")(presets)


def presets(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")] = False,
) -> None:
    """List the presets: start one with `loratory train NAME`."""
    from engine.config.presets import list_presets

    known = list_presets()
    if as_json:
        print_json(
            [
                {
                    "name": preset.name,
                    "title": preset.title,
                    "about": preset.about,
                    "memory_gib": preset.memory_gib,
                    "config": preset.load().model_dump(mode="json"),
                }
                for preset in known
            ]
        )
    else:
        rows = [
            (preset.name, "CPU" if preset.memory_gib is None else f"{preset.memory_gib:g} GiB", preset.title)
            for preset in known
        ]
        print_table(("name", "device", "what it is"), rows)
