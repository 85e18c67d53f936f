"""The model that is served: under which names it answers, and loaded again when it was unloaded for a run."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.chat.contract import Branch, ChatTarget, LoadedModel
from engine.chat.session import ChatSession, OnLoadProgress
from engine.data.conversation import Message
from engine.serve.contract import RefusedRequestError

BASE_NAME = "base"

# More would share the same tokens per second; each one holds keys and values of its whole context.
_AT_ONCE = 16


@dataclass
class ServedModel:
    """One target on one session, for any number of clients.

    Args:
        session: Answers; a model in a process of its own.
        target: What is loaded into it.
        name: What clients call it; `base` is its base, where it has one.
        aliases: Further names for the same.
    """

    session: ChatSession
    target: ChatTarget
    name: str
    aliases: Sequence[str] = ()
    _branches: Mapping[str, Branch] = field(default_factory=dict, init=False)
    _offered: Sequence[str] = field(default=(), init=False)
    _created: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._loading = asyncio.Lock()
        self._room = asyncio.Semaphore(_AT_ONCE)

    @property
    def room(self) -> asyncio.Semaphore:
        """Held while an answer is written; further requests wait in order."""
        return self._room

    @property
    def offered(self) -> Sequence[str]:
        """The names that are listed."""
        return self._offered

    @property
    def created(self) -> int:
        """When it was loaded first, in seconds since the epoch."""
        return self._created

    def load(self, on_progress: OnLoadProgress | None = None) -> LoadedModel:
        """Load it, and find out what it can be asked for.

        Raises:
            EngineError: As `ChatSession.load` does.
        """
        loaded = self.session.load(self.target, on_progress)
        own: Branch = "tuned" if "tuned" in loaded.branches else "base"
        names: dict[str, Branch] = {self.name: own, **dict.fromkeys(self.aliases, own)}
        offered = [self.name]
        if "base" in loaded.branches:
            names.setdefault(BASE_NAME, "base")
            names.setdefault(loaded.name, "base")
            if own != "base":
                offered.append(BASE_NAME)
        self._branches, self._offered = names, offered
        self._created = self._created or int(time.time())
        return loaded

    async def ready(self) -> None:
        """Make sure that it is loaded: an idle model makes room for a run that waits for its device.

        Raises:
            EngineError: If it cannot be loaded now, as when that run still has the device.
        """
        if self.session.state.phase in ("ready", "generating"):
            return
        async with self._loading:
            if self.session.state.phase not in ("ready", "generating"):
                await asyncio.to_thread(self.load)

    def branch(self, name: str) -> Branch:
        """Who answers to a name.

        Raises:
            RefusedRequestError: If there is none.
        """
        found = self._branches.get(name)
        if found is None:
            raise RefusedRequestError(
                f"The model {name[:100]!r} does not exist here; there are {', '.join(self._offered)}.",
                param="model",
                code="model_not_found",
                status=404,
            )
        return found

    async def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return exactly what the model reads for a conversation."""
        return (await asyncio.to_thread(self.session.prompt, messages)).ids
