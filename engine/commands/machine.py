"""`loratory machine`: computers that train for this one, reached by SSH."""

from typing import Annotated, Any

import typer

from loratory.engine.commands.output import AsJson, format_memory, print_result
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.ssh.machine import (
    Machine,
    MachineError,
    add_machine,
    machine_devices,
    read_machines,
)

machine = typer.Typer(name="machine", help="Computers that train for this one, reached by SSH.", no_args_is_help=True)
MachineName = Annotated[str, typer.Argument(metavar="NAME", help="What you call the machine.")]


@machine.command()
def add(
    name: MachineName,
    destination: Annotated[
        str, typer.Argument(metavar="USER@HOST", help="As ssh takes it; an alias of ~/.ssh/config too.")
    ],
    python: Annotated[
        str, typer.Option("--python", help="A Python there that has torch, transformers, PEFT and TRL.")
    ] = "",
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Of its SSH server.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a machine: install this Loratory there, and show its devices. The host key must be known, and a key accepted."""
    home, entry = LoratoryHome.from_environment(), Machine(destination=destination, python=python, port=port)
    before = read_machines(home).get(name)
    add_machine(home, name, entry)
    try:
        _report([name], as_json)
    except MachineError:
        add_machine(home, name, before)
        raise


@machine.command()
def check(name: MachineName, as_json: AsJson = False) -> None:
    """Ask a machine for its devices and their free memory."""
    _report([name], as_json)


@machine.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the machines, with the devices of those that answer."""
    _report(list(read_machines(LoratoryHome.from_environment())), as_json, raises=False)


@machine.command()
def remove(name: MachineName, as_json: AsJson = False) -> None:
    """Forget a machine; what is on it stays there."""
    add_machine(LoratoryHome.from_environment(), name, None)
    print_result({"removed": name}, f"{name} is forgotten.", as_json=as_json)


def _report(names: list[str], as_json: bool, *, raises: bool = True) -> None:
    machines, values, lines = read_machines(LoratoryHome.from_environment()), list[dict[str, Any]](), list[str]()
    for name in names:
        entry = machines.get(name)
        if entry is None:
            raise MachineError(
                f"{name[:40]!r} is not one of your machines.", f"Known: {', '.join(machines) or 'none'}."
            )
        try:
            devices = machine_devices(name, entry)
        except MachineError as error:
            if raises:
                raise
            values.append({"name": name, "destination": entry.destination, "problem": str(error)})
            lines.append(f"{name}  {entry.destination}  {error}")
            continue
        values.append({"name": name, "destination": entry.destination, "devices": devices})
        lines += [
            f"{name}  {entry.destination}  {d.name}, {format_memory(d.free_bytes)} free of {format_memory(d.total_bytes)}"
            for d in devices
        ]
    print_result(
        values,
        "\n".join(lines) or "No machines yet. Add one with `loratory machine add NAME user@host`.",
        as_json=as_json,
    )


COMMANDS = (machine,)
