"""What is asked of a push to the Hugging Face Hub, and what comes out of it."""

from pathlib import Path
from typing import Literal

from engine.chat.contract import ChatTarget, Value
from engine.config.push import PushConfig
from engine.export.contract import ExportedFile, Verification

# In this order; a wait for the Hub is told within the phase that it holds up.
PushPhase = Literal["checking", "preparing", "uploading", "committing", "ready"]


class PushRequest(Value):
    """Which result, into which repository."""

    target: ChatTarget  # a run with or without a checkpoint, or an adapter folder
    repository: str  # owner/name, or a name alone for the account that the token belongs to
    settings: PushConfig = PushConfig()


class PushProgress(Value):
    """How far it has come; `fraction` from 0 to 1 where it is known, of the phase."""

    phase: PushPhase
    message: str
    fraction: float | None = None


class PushResult(Value):
    """What came out: everything is there, in one commit."""

    url: str  # of the repository, at the branch that was pushed to
    commit: str
    repository: str  # owner/name
    private: bool
    files: tuple[ExportedFile, ...]  # what the repository holds of this result
    sent_bytes: int  # what had to be uploaded; 0 where everything was there already
    verified: Verification | None
    notes: tuple[str, ...] = ()


class HubAccount(Value):
    """Whose token is in use, as the Hub says."""

    name: str
    organizations: tuple[str, ...] = ()  # whose repositories the account may see; writing needs a right of its own


class UploadOrder(Value):
    """What the process that talks to the Hub is asked for."""

    folder: Path
    repository: str  # owner/name
    settings: PushConfig
    message: str  # of the commit


class UploadResult(Value):
    """What it answers."""

    url: str
    commit: str
    private: bool
    files: tuple[ExportedFile, ...]
    sent_bytes: int
    notes: tuple[str, ...] = ()
