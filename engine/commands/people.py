"""`loratory people`: the accounts of a lab, for who can use the machine that it runs on."""

from typing import Annotated

import typer

from engine.accounts.accounts import Accounts, Invitation, open_database
from engine.accounts.audit import AuditKind, AuditLog
from engine.accounts.lab import PublicAddress, audit_log_path, join_link, public_address
from engine.accounts.people import Person, require_role
from engine.commands.output import AsJson, confirm, print_json, print_result, print_table, words_of_time
from engine.paths import LoratoryHome

people = typer.Typer(
    name="people",
    help="The accounts of a lab: list, invite, reset, role, disable, enable, remove.",
    no_args_is_help=True,
)

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
        print_json({"people": [vars(person) for person in members], "invitations": [vars(one) for one in invitations]})
        return
    if not members:
        print("There are no accounts yet. Invite the first admin with `loratory people invite --admin`.")
    else:
        header = ("name", "role", "last sign-in", "state")
        print_table(header, [(one.name, one.role, words_of_time(one.last_sign_in), _state(one)) for one in members])
    for one in invitations:
        what = one.role if one.person is None else f"password of {one.person}"
        print(f"An invitation ({what}) can be used until {words_of_time(one.expires)}.")


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
def remove(
    name: Name, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, as_json: AsJson = False
) -> None:
    """Remove an account; its runs stay, and its name is not given again."""
    accounts = _accounts()
    person = accounts.person(name)
    confirm(f"Remove {person.name} for good?", given=yes)
    accounts.remove(person.name)
    _log("removed", subject=person.name)
    print_result({"removed": person.name}, f"{person.name} was removed.", as_json=as_json)


def _accounts() -> Accounts:
    return Accounts(open_database(LoratoryHome.from_environment()))


def _log(kind: AuditKind, subject: str = "", detail: str = "") -> None:
    AuditLog(audit_log_path(LoratoryHome.from_environment())).write("", kind, subject, detail)


def _print_link(address: PublicAddress, invitation: Invitation, as_json: bool) -> None:
    link = join_link(address, invitation)
    text = f"{link}\nIt can be used once, until {words_of_time(invitation.expires)}. Send it over a channel you trust."
    print_result({"link": link, "expires": invitation.expires, "role": invitation.role}, text, as_json=as_json)


def _print_person(person: Person, kind: AuditKind, as_json: bool) -> None:
    _log(kind, subject=person.name, detail=person.role)
    print_result(vars(person), f"{person.name}: {person.role}, {_state(person)}.", as_json=as_json)


def _state(person: Person) -> str:
    return "active" if person.disabled is None else f"disabled since {words_of_time(person.disabled)}"


COMMANDS = (people,)
