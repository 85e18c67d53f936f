"""The urgent slot of a lab: one waiting run that an admin put first."""

from pydantic import BaseModel, ConfigDict

from engine.accounts.people import Action, Person, may
from engine.errors import AccountError, RunError
from engine.files import read_model, write_atomically
from engine.paths import LoratoryHome
from engine.processes.liveness import FileLock
from engine.runs.run import Run, RunFolder

_LONGEST_WHY = 120


class UrgentRun(BaseModel):
    """The run in the slot, who put it there, and why; all people of the lab read this."""

    model_config = ConfigDict(frozen=True)

    owner: str
    run_id: str
    by: str = ""
    why: str = ""

    @property
    def words(self) -> str:
        """Why it goes first."""
        reason = f" ({self.why})" if self.why else ""
        return f"Goes first: {self.by or 'an admin'} made it urgent{reason}."


class UrgentSlot:
    """Holds one run at most; it is empty again as soon as that run no longer waits."""

    def __init__(self, home: LoratoryHome) -> None:
        self._runs = home.runs
        self._path = home.server / "urgent.json"
        self._lock_path = home.server / "urgent.lock"

    def run(self) -> UrgentRun | None:
        """Return the run in the slot; None where it is empty."""
        slot = read_model(self._path, UrgentRun)
        if slot is None:
            return None
        folder = RunFolder(self._runs / slot.owner / slot.run_id)
        return slot if folder.path.is_dir() and folder.read_state().state == "queued" else None

    def run_id(self) -> str | None:
        """Return the id of the run in the slot; None where it is empty."""
        slot = self.run()
        return slot.run_id if slot is not None else None

    def put(self, person: Person, run: Run, why: str = "") -> None:
        """Make a waiting run the first of the queue.

        Args:
            why: Shown to all people of the lab; truncated to 120 characters.

        Raises:
            AccountError: If the person may not.
            RunError: If the run does not wait, or another one has the slot.
            StorageError: If that cannot be saved.
        """
        _require(person)
        with FileLock(self._lock_path):
            state = run.folder.read_state().state
            if state != "queued":
                raise RunError(f"{run.id} is {state} and does not wait.", "Only waiting runs can be urgent.")
            if self.run_id() not in (None, run.id):
                raise RunError("Another run is urgent already.", "Wait until it has started, or clear it.")
            words = "".join(sign for sign in " ".join(why.split()) if sign.isprintable())[:_LONGEST_WHY]
            slot = UrgentRun(owner=run.owner, run_id=run.id, by=person.name, why=words)
            write_atomically(self._path, slot.model_dump_json())

    def clear(self, person: Person) -> None:
        """Empty the slot; its run waits for its turn again.

        Raises:
            AccountError: If the person may not.
        """
        _require(person)
        with FileLock(self._lock_path):
            self._path.unlink(missing_ok=True)


def _require(person: Person) -> None:
    if not may(person, Action.USE_URGENT_SLOT):
        raise AccountError("Only admins can make a run urgent.", "Ask an admin.")
