"""Where everything lives: one home folder, the files that ship with the program, and what a person of a lab may name."""

import contextlib
import getpass
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from loratory.engine.errors import EngineError, StorageError, explain_os_errors

PRESETS_FOLDER = Path(__file__).resolve().parent.parent / "presets"
SAMPLES_FOLDER = PRESETS_FOLDER / "data"
LAB = "LORATORY_LAB"  # set in a lab: names are not looked up in the folder that the server happened to start in
IN_A_SPACE = "SPACE_ID"  # set by Hugging Face in a Space, to its name
HANDED_OVER = "LORATORY_SPACE_FD"  # descriptor of the file that a Space's server passes to itself when it restarts
_PERSON, _ROLE = "LORATORY_PERSON", "LORATORY_ROLE"  # for whom a process of a lab works


def local_owner() -> str:
    """Return who runs this process, as a folder name; the owner of runs where no accounts exist."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = "local"
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:64].strip("-") or "local"


def typed_path(text: str | Path) -> Path:
    """Return the path of a typed text, with ~ expanded; an unknown user stays as typed, and does not exist."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib's own raises for an unknown user


def searches_working_folder() -> bool:
    """Return whether a name like that of a model or dataset on the Hub may also be a file in the working folder."""
    return LAB not in os.environ


def data_folders() -> tuple[Path, ...]:
    """Return the folders whose files the page may open; the command line reads all that its user may read.

    The person's home folder, the working folder, the folder that contains Loratory's own, and those that
    `$LORATORY_DATA` names, separated as in `$PATH`.
    """
    extra = [typed_path(name) for name in os.environ.get("LORATORY_DATA", "").split(os.pathsep) if name]
    folders = (Path.home(), Path.cwd(), PRESETS_FOLDER.parent.parent, *extra)
    # A root of the file system would confine nothing; people who want that name it.
    confining = (folder for folder in folders if folder in extra or folder.resolve() != Path(folder.anchor))
    return tuple(dict.fromkeys(folder.resolve() for folder in confining))


class _Folder:
    """A folder of a `LoratoryHome`; `of_owner`, the part of its person."""

    def __init__(self, name: str, *, of_owner: bool = False) -> None:
        self._name, self._of_owner = name, of_owner

    def __get__(self, home: "LoratoryHome", _: type | None = None) -> Path:
        return home.root / self._name / (home.owner if self._of_owner else "")


@dataclass(frozen=True)
class LoratoryHome:
    """The folder that holds runs, models, uploads and caches; `$LORATORY_HOME` or the platform's user data folder."""

    root: Path  # the folder
    # In a lab, the person whose uploads, exports and transfers these are; empty where there are no accounts.
    owner: str = ""
    role: str = ""  # of that person; a guest may name no paths

    def for_person(self, owner: str, role: str = "member") -> "LoratoryHome":
        """Return the home as one person of a lab has it, with folders of their own."""
        return replace(self, owner=owner, role=role)

    @property
    def is_guest(self) -> bool:
        """Whether its person may use presets and samples alone."""
        return self.role == "guest"

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a process of ours finds this home, as the same person has it."""
        variables = {"LORATORY_HOME": str(self.root)}
        return variables | ({_PERSON: self.owner, _ROLE: self.role, LAB: "1"} if self.owner else {})

    @classmethod
    def from_environment(cls) -> "LoratoryHome":
        """Find the home folder and make sure that it can be written.

        Raises:
            StorageError: If the folder cannot be created or written.
        """
        home = cls.locate()
        home.make_writable()
        return home

    @classmethod
    def locate(cls) -> "LoratoryHome":
        """Return where the home folder is or would be; nothing is made there."""
        value = os.environ.get("LORATORY_HOME")
        root = typed_path(value) if value else platformdirs.user_data_path("loratory", appauthor=False)
        return cls(root.resolve(), os.environ.get(_PERSON, ""), os.environ.get(_ROLE, ""))

    def make_writable(self) -> None:
        """Create the home folder (mode 0700) and prove that it can be written.

        Raises:
            StorageError: If it cannot.
        """
        probe = self.root / f".write-probe-{os.getpid()}"
        with explain_os_errors(
            f"The Loratory home {self.root} cannot be written", "Set LORATORY_HOME to a folder that you may write to."
        ):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()

    runs = _Folder("runs")
    models = _Folder("models")  # that were converted or imported here, one folder each
    # Of one person: models fetched with a token of their own, or converted; no other person finds them.
    own_models = _Folder("own-models", of_owner=True)
    exports = _Folder("exports", of_owner=True)  # unless the person names another folder
    uploads = _Folder("uploads", of_owner=True)  # dataset files that came in through the page
    # Images of rows by their digests, of one person: in another's, a digest that was guessed leads to nothing.
    media = _Folder("media", of_owner=True)
    datasets = _Folder("datasets", of_owner=True)  # sets of one person: datasets with versions and edits
    presets = _Folder("presets", of_owner=True)  # that one person saved
    votes = _Folder("votes", of_owner=True)  # on answers, of one person
    shared_data = _Folder("shared/data")  # that an admin put there for all people of a lab, who can read it
    shared_models = _Folder("shared/models")  # the same of models
    own_runs = _Folder("runs", of_owner=True)  # of the person of a lab whose home this is
    transfers = _Folder("transfers", of_owner=True)  # on their way into or out of the page; swept after hours
    shared_cache = _Folder("cache")  # what can be computed again from public data, or is true of this machine
    server = _Folder("server")  # the supervisor's own files: its lock, the queue

    @property
    def own_hub_cache(self) -> Path | None:
        """The Hub's cache of one person of a lab, searched before the one that all share; None where there are no accounts."""
        return self.own_models / "hub" if self.owner else None

    @property
    def cache(self) -> Path:
        """What can be computed again: dataset reports, inventories of modules; in a lab, of one person."""
        return self.root / "page-cache" / self.owner if self.owner else self.shared_cache

    @property
    def logs(self) -> Path:
        """Output of this machine's helper processes; apart from that of other machines, which have theirs open."""
        return self.server / "logs" / (platform.node() or "localhost")


# The same for what exists and what does not: a refusal must not reveal which files this machine has.
REFUSAL = (
    "That path is outside the folders that you may use in this lab.",
    "Upload the file, or name one of your own uploads, exports and runs, or what is in shared/data or shared/models.",
)
_LONGEST = 4096
_SHARED = "shared"

MakeError = Callable[[str, str], EngineError]  # makes the error of a refusal


@dataclass(frozen=True)
class AllowedPaths:
    """The folders of one person of a lab, as a path that was typed or sent is confined to them."""

    home: LoratoryHome  # the home as this person has it

    @classmethod
    def for_home(cls, home: LoratoryHome) -> "AllowedPaths | None":
        """Return what a home's person may name; None where there are no accounts."""
        return cls(home) if home.owner else None

    def read(self, text: str | Path, error: MakeError = StorageError) -> Path:
        """Return the file or folder that is meant, with links followed; it need not exist.

        A relative path is one of the person's uploads, or below `shared/`.

        Raises:
            EngineError: As `error` makes it, if a path leads anywhere else.
        """
        base = self.home.root if Path(text).parts[:1] == (_SHARED,) else self.home.uploads
        path = _resolve_below(base, text)
        if path is None or not any(path.is_relative_to(root) for root in self.readable):
            raise error(*REFUSAL)
        return path

    def write(self, text: str | Path, error: MakeError = StorageError) -> Path:
        """Return the folder to write to, below the person's exports; a relative path begins there.

        Raises:
            EngineError: As `error` makes it, if it is anywhere else.
        """
        exports = self.home.exports.resolve()
        path = _resolve_below(exports, text)
        if path is None or exports not in path.parents:
            raise error(*REFUSAL)
        return path

    @property
    def readable(self) -> tuple[Path, ...]:
        """The folders below which a person may name anything; none for a guest."""
        home = self.home
        if home.is_guest:
            return ()
        own = (home.uploads, home.exports, home.own_runs, home.cache)  # a measurement's rows are in the last
        shared = (home.shared_data, home.shared_models)
        return (*(folder.resolve() for folder in own), *(root for folder in shared for root in _with_links(folder)))


def _resolve_below(base: Path, text: str | Path) -> Path | None:
    """Return an absolute path with links followed; None for what is not a path of a person, such as the server's ~."""
    path_text = str(text).strip()
    if not path_text or path_text.startswith("~") or "\0" in path_text or len(path_text) > _LONGEST:
        return None
    try:
        path = (base / path_text).resolve()
        # From Python 3.13 on, links in a circle stay as they are.
        return None if any(part.is_symlink() for part in (path, *path.parents)) else path
    except (OSError, RuntimeError, ValueError):  # before 3.13, links in a circle; or a name that no file can have
        return None


def _with_links(folder: Path) -> list[Path]:
    """Return a folder, and where an admin's links directly in it lead: large models rarely lie in the home itself."""
    folders = [folder.resolve()]
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        folders += [Path(entry.path).resolve() for entry in entries if entry.is_symlink()]
    return folders
