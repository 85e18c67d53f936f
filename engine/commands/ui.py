"""`loratory ui`: the page, as `python app.py` opens it."""

import importlib
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the `loratory` program."""
    app.command("ui")(ui)


def ui(
    host: Annotated[str, typer.Option("--host", help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 7860,
    opens_browser: Annotated[bool, typer.Option("--open", help="Open the page in the default browser.")] = False,
) -> None:
    """Open the Loratory page in a browser."""
    # The page stands above the engine, which must not know it: it is found by name when somebody asks for it.
    page = importlib.import_module("app")
    arguments = ["--host", host, "--port", str(port), *(["--open"] if opens_browser else [])]
    raise typer.Exit(page.main(arguments))
