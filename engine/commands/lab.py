"""`loratory people`, `lab` and `cluster`: the accounts of a lab, its service and backups, and its Slurm cluster."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from loratory.engine.accounts.accounts import Accounts, Invitation, open_database
from loratory.engine.accounts.audit import AuditKind, AuditLog
from loratory.engine.accounts.backup import BackupSize, restore_backup, write_backup
from loratory.engine.accounts.deployment import Deployment
from loratory.engine.accounts.lab import PublicAddress, audit_log_path, join_link, public_address
from loratory.engine.accounts.people import Person, require_role
from loratory.engine.commands.output import AsJson, Yes, confirm, format_time, print_json, print_result, print_table
from loratory.engine.errors import ClusterError
from loratory.engine.paths import LoratoryHome, typed_path
from loratory.engine.places.slurm import discovery
from loratory.engine.places.slurm.commands import Slurm
from loratory.engine.places.slurm.place import CLUSTER_FILE, ClusterPlace, has_place, read_place
from loratory.engine.quantities import size

_PEOPLE = "The accounts of a lab: list, invite, reset, role, disable, enable, remove."
people = typer.Typer(name="people", help=_PEOPLE, no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The account.")]
PublicUrl = Annotated[
    str | None, typer.Option("--public-url", help="Address of the lab, where it has not been served yet.")
]


@people.command("list")
def list_people(as_json: AsJson = False) -> None:
    """List the accounts, and the invitations that were not used yet."""
    accounts = _accounts()
    members, invitations = accounts.people(), accounts.invitations()
    if as_json:
        print_json({"people": list(map(vars, members)), "invitations": list(map(vars, invitations))})
        return
    if not members:
        print("There are no accounts yet. Invite the first admin with `loratory people invite --admin`.")
    else:
        rows = [(person.name, person.role, format_time(person.last_sign_in), _state(person)) for person in members]
        print_table(("name", "role", "last sign-in", "state"), rows)
    for invitation in invitations:
        what = invitation.role if invitation.person is None else f"password of {invitation.person}"
        print(f"An invitation ({what}) can be used until {format_time(invitation.expires)}.")


@people.command()
def invite(
    role: Annotated[str, typer.Option("--role", help="member, guest or admin.")] = "member",
    admin: Annotated[bool, typer.Option("--admin", help="The same as --role admin.")] = False,
    public_url: PublicUrl = None,
    as_json: AsJson = False,
) -> None:
    """Print a link that makes one account; it is valid once, for 72 hours."""
    address = public_address(LoratoryHome.from_environment(), public_url)
    invitation = _accounts().invite(require_role("admin" if admin else role), by="")
    _log("invited", detail=invitation.role)
    _print_link(address, invitation, as_json)


@people.command()
def reset(name: Name, public_url: PublicUrl = None, as_json: AsJson = False) -> None:
    """Print a link with which a person sets another password; the present one, and links to other services, end at once."""
    address = public_address(LoratoryHome.from_environment(), public_url)
    invitation = _accounts().reset(name, by="")
    _log("invited", subject=invitation.person or "", detail="password")
    _print_link(address, invitation, as_json)


@people.command()
def role(
    name: Name,
    new: Annotated[str, typer.Argument(metavar="ROLE", help="member, guest or admin.")],
    as_json: AsJson = False,
) -> None:
    """Change what a person may do."""
    _print_person(_accounts().set_role(name, require_role(new)), "role changed", as_json)


@people.command()
def disable(name: Name, as_json: AsJson = False) -> None:
    """Keep a person out, and end their sessions; their runs continue."""
    _print_person(_accounts().disable(name), "disabled", as_json)


@people.command()
def enable(name: Name, as_json: AsJson = False) -> None:
    """Let a disabled person sign in again."""
    _print_person(_accounts().enable(name), "enabled", as_json)


@people.command()
def remove(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove an account; its runs stay, and its name is not given again."""
    accounts = _accounts()
    person = accounts.person(name)
    confirm(f"Remove {person.name} for good?", yes=yes)
    accounts.remove(person.name)
    _log("removed", subject=person.name)
    print_result({"removed": person.name}, f"{person.name} was removed.", as_json=as_json)


def _accounts() -> Accounts:
    return Accounts(open_database(LoratoryHome.from_environment()))


def _log(kind: AuditKind, subject: str = "", detail: str = "") -> None:
    AuditLog(audit_log_path(LoratoryHome.from_environment())).write("", kind, subject, detail)


def _print_link(address: PublicAddress, invitation: Invitation, as_json: bool) -> None:
    link = join_link(address, invitation)
    text = f"{link}\nIt can be used once, until {format_time(invitation.expires)}. Send it over a channel you trust."
    print_result({"link": link, "expires": invitation.expires, "role": invitation.role}, text, as_json=as_json)


def _print_person(person: Person, kind: AuditKind, as_json: bool) -> None:
    _log(kind, subject=person.name, detail=person.role)
    print_result(vars(person), f"{person.name}: {person.role}, {_state(person)}.", as_json=as_json)


def _state(person: Person) -> str:
    return "active" if person.disabled is None else f"disabled since {format_time(person.disabled)}"


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
    address = public_address(LoratoryHome.locate(), public_url)
    deployment = Deployment(address, user, home, tls_cert, tls_key, oidc, identity_header, proxy_user)
    if any(Path(sys.prefix).resolve().is_relative_to(homes) for homes in ("/home", "/root")):
        note = f"Note: {sys.prefix} is in a home folder, which the service cannot read. Install it in /opt."
        print(note, file=sys.stderr)
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
    home = LoratoryHome.locate()
    path = typed_path(file).absolute()
    restored = restore_backup(home, path)
    AuditLog(audit_log_path(home)).write("", "restored", path.name)
    _print_size(path, restored, as_json)


def _print_file(path: str, content: str, *, is_alone: bool) -> None:
    print(content if is_alone else f"# {path}\n{content}")


def _print_size(path: Path, backup: BackupSize, as_json: bool) -> None:
    text = f"{path}: {backup.people:,} people, {backup.runs:,} runs, {backup.files:,} files, {size(backup.bytes)}."
    print_result({"file": str(path), **backup._asdict()}, text, as_json=as_json)


cluster = typer.Typer(name="cluster", help="A Slurm cluster: describe it, check it.", no_args_is_help=True)


@cluster.command()
def discover(
    replace: Annotated[bool, typer.Option("--replace", help=f"Replace {CLUSTER_FILE}; the old one is kept.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write cluster.yaml from what sinfo shows."""
    home = LoratoryHome.from_environment()
    proposal = discovery.propose(discovery.list_groups(Slurm()))
    if has_place(home) and not replace:
        different = discovery.differences(home, proposal)
        text = "\n".join(f"  {line}" for line in different) or "  nothing"
        raise ClusterError(
            f"There is a {CLUSTER_FILE} already; it differs from what sinfo shows in:\n{text}\n",
            "Edit it, or replace it with --replace.",
        )
    discovery.write_place(home, proposal)
    lines = [
        discovery.to_yaml(proposal),
        f"Written to {home.root / CLUSTER_FILE}. Edit it, then run `loratory cluster check`.",
    ]
    if unknown := discovery.unknown_types(proposal):
        lines.append(f"Memory assumed, so check it: {', '.join(unknown)}.")
    print_result(proposal.model_dump(mode="json"), "\n".join(lines), as_json=as_json)


@cluster.command()
def check(
    gpu_type: Annotated[str | None, typer.Option("--gpu-type", help="Check this type of GPU, else the first.")] = None,
    wait: Annotated[float, typer.Option("--wait", min=1, help="Seconds to wait for the job.")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Submit a small job that reports GPU, memory, versions and network of a node."""
    home = LoratoryHome.from_environment()
    place = read_place(home)
    names = [kind.name for kind in place.gpu_types]
    if gpu_type is not None and gpu_type not in names:
        what = f"{CLUSTER_FILE} has no GPU type {gpu_type!r}."
        raise ClusterError(what, f"Its types are {', '.join(names) or 'none'}.")
    kind = gpu_type if gpu_type is not None else next(iter(names), "")
    typer.echo(f"Asking Slurm for a node with {f'1×{kind}' if names else 'CPU'}.", err=True)
    report = discovery.probe_node(home, place, kind, wait)
    problems = list(find_problems(place, kind, report))
    values = {**report.model_dump(mode="json"), "problems": problems}
    print_result(values, _report_text(report, problems), as_json=as_json)
    if problems:
        raise typer.Exit(1)


def find_problems(place: ClusterPlace, kind: str, report: discovery.ProbeReport) -> Iterator[str]:
    """Yield what of a node does not agree with the description, a sentence each."""
    gpu_type = next((gpu for gpu in place.gpu_types if gpu.name == kind), None)
    if gpu_type is not None and not report.gpus:
        yield f"{report.host} shows no GPU to NVIDIA's driver, although the job had one."
    if gpu_type is not None and report.gpus and report.gpus[0].memory_gib < gpu_type.memory_gib - 0.5:
        gpu = report.gpus[0]
        yield f"{gpu.name} has {gpu.memory_gib:.1f} GiB; {CLUSTER_FILE} has {gpu_type.memory_gib:g}."
    if not report.has_home:
        yield f"{report.host} cannot write to LORATORY_HOME, which nodes and this machine share."
    if report.versions.get("torch") is None:
        yield "PyTorch is not installed for the Python of the nodes."
    if not place.offline and not report.has_internet:
        yield f"The node cannot reach Hugging Face; set offline: true in {CLUSTER_FILE}."


def _report_text(report: discovery.ProbeReport, problems: list[str]) -> str:
    gpus = ", ".join(f"{gpu.name} ({gpu.memory_gib:.1f} GiB)" for gpu in report.gpus) or "none"
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in report.versions.items())
    lines = [
        f"Job {report.job} ran on {report.host}.",
        f"  GPU       {gpus}" + (f", CUDA_VISIBLE_DEVICES={report.visible}" if report.visible else ""),
        f"  node      {report.cores} cores for the job, {report.memory_gib:.1f} GiB RAM",
        f"  software  Python {report.python}, {versions}",
        f"  network   {'reaches Hugging Face' if report.has_internet else 'offline'}",
    ]
    return "\n".join([*lines, *(f"Problem: {problem}" for problem in problems)])


COMMANDS = (people, lab, cluster)
