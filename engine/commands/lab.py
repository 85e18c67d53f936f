"""`loratory lab`: run a lab as a service of this machine, back it up, restore it."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.accounts.audit import AuditLog
from engine.accounts.backup import BackupSize, restore_backup, write_backup
from engine.accounts.deployment import Deployment
from engine.accounts.lab import audit_log_path, public_address
from engine.commands.output import AsJson, print_result
from engine.paths import LoratoryHome, typed_path
from engine.quantities import size

lab = typer.Typer(name="lab", help="A lab as a service: files, backup, restore.", no_args_is_help=True)

Part = Literal["service", "caddy"]
BackupFile = Annotated[Path, typer.Argument(metavar="FILE.tar", help="The backup.")]


@lab.command()
def files(
    part: Annotated[Part | None, typer.Argument(metavar="[service|caddy]", help="One file alone, to redirect.")] = None,
    public_url: Annotated[str | None, typer.Option("--public-url", help="Address at which browsers reach it.")] = None,
    user: Annotated[str, typer.Option("--user", help="Dedicated user of the machine.")] = Deployment.user,
    home: Annotated[Path, typer.Option("--home", help="Folder of the lab.")] = Deployment.home,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Without a proxy: certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Without a proxy: its key.")] = None,
    oidc: Annotated[Path | None, typer.Option("--oidc", help="File of an OpenID Connect provider.")] = None,
    identity_header: Annotated[
        str | None, typer.Option("--identity-header", help="Header in which the proxy names people.")
    ] = None,
    proxy_user: Annotated[str | None, typer.Option("--proxy-user", help="System user of that proxy.")] = None,
) -> None:
    """Print a systemd unit for the lab and a Caddyfile for the proxy in front of it."""
    address = public_address(LoratoryHome.located(), public_url)
    deployment = Deployment(address, user, home, tls_cert, tls_key, oidc, identity_header, proxy_user)
    if Path(sys.prefix).resolve().is_relative_to("/home") or Path(sys.prefix).resolve().is_relative_to("/root"):
        print(
            f"Note: {sys.prefix} is in a home folder, which the service cannot read. Install it in /opt.",
            file=sys.stderr,
        )
    if part is None:
        print(deployment.steps())
    if part != "caddy":
        _print_file("/etc/systemd/system/loratory.service", deployment.unit(), is_alone=part is not None)
    if part != "service" and tls_cert is None:
        _print_file("/etc/caddy/Caddyfile", deployment.caddyfile(), is_alone=part is not None)


@lab.command()
def backup(
    file: BackupFile,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="With checkpoints, to resume runs from.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save accounts, settings, audit log and runs; the lab may be in use meanwhile.

    Adapters are part of the runs. Models, shared data, uploads and exports are not in it.
    """
    home = LoratoryHome.from_environment()
    path = typed_path(file).absolute()
    archive = write_backup(home, path, with_checkpoints=checkpoints)
    AuditLog(audit_log_path(home)).write("", "backed up", path.name, "with checkpoints" if checkpoints else "")
    _print_size(path, archive, as_json)


@lab.command()
def restore(file: BackupFile, as_json: AsJson = False) -> None:
    """Fill an empty LORATORY_HOME from a backup; people then sign in again with their passwords."""
    home = LoratoryHome.located()
    path = typed_path(file).absolute()
    restored = restore_backup(home, path)
    AuditLog(audit_log_path(home)).write("", "restored", path.name)
    _print_size(path, restored, as_json)


def _print_file(place: str, content: str, *, is_alone: bool) -> None:
    print(content if is_alone else f"# {place}\n{content}")


def _print_size(path: Path, backup: BackupSize, as_json: bool) -> None:
    text = f"{path}: {backup.people:,} people, {backup.runs:,} runs, {backup.files:,} files, {size(backup.bytes)}."
    print_result({"file": str(path), **backup._asdict()}, text, as_json=as_json)


COMMANDS = (lab,)
