"""The process that talks to the Hub: `python -P -m engine.export.push.upload`, JSON lines on stdio; has no torch.

What a repository lacks is uploaded, then everything appears in one commit. A process of its own can be ended in the middle
of a large file. The token comes from the environment or the login, is found here, and goes nowhere but to the Hub.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils._runtime import is_xet_available

from engine.chat.contract import OnProgress, Phase, Progress
from engine.config.results import PushConfig, PushKind
from engine.errors import PushError
from engine.export.contract import PushResult, UploadOrder
from engine.export.kinds import KINDS
from engine.export.push.files import intended_files, refuse_private_content
from engine.export.push.hub_answers import (
    Patience,
    Traffic,
    hub_client,
    native_errors_translated,
    persist,
    push_errors_explained,
)
from engine.hub_errors import PUSH, Fault, HubFault
from engine.processes.messages import CancelledRequestError, JsonObject, Request, serve

Answer = TypeVar("Answer")

_MAIN = "main"
_LOOK_SECONDS = 0.2


class _Repository(NamedTuple):
    """The present state of a repository on the Hub."""

    private: bool
    commit: str | None  # of the branch; None where the branch is missing
    sizes: dict[str, int]  # bytes by name, of that commit
    checksums: dict[str, str]  # sha256 by name, of large files


@dataclass
class HubPush:
    """One push, as far as the Hub is concerned. Everything in it can be repeated without doing anything twice."""

    api: HfApi  # with the token in it
    report: OnProgress
    traffic: Traffic  # counts what goes over the line
    patience: Patience = Patience()  # noqa: RUF009 - cannot be changed
    sleep: Callable[[float], None] = time.sleep  # may raise where the push was stopped

    def accounts(self) -> list[str]:
        """Return the name of the account whose token this is, and those of its organizations.

        The account sees their repositories; writing needs a right of its own.

        Raises:
            PushError: If the Hub does not accept the token.
            HubUnreachableError: If the Hub does not answer.
        """
        answer = self._ask("checking", "your account", self.api.whoami)
        return [str(one["name"]) for one in (answer, *(answer.get("orgs") or ()))]

    def check(self, name: str, settings: PushConfig) -> str:
        """Find out what would speak against a push, before anything is prepared, and return the repository's full name.

        Raises:
            PushError: If the repository is more public than wanted, holds something of another kind, or would have to be
                made for an owner whom the account does not belong to.
            HubUnreachableError: If the Hub does not answer.
        """
        own = self.accounts()
        repository = name if "/" in name else f"{own[0]}/{name}"
        there = self._look("checking", repository, settings.revision)
        if there is not None:
            _refuse_conflict(repository, there, settings.kind, private=settings.private)
            return repository
        owner = repository.partition("/")[0]
        if owner.casefold() not in {name.casefold() for name in own}:
            raise PushError(
                f"There is no {repository} that you can see, and {own[0]} may not make one for {owner}.",
                f"Name an owner that your token may write to: {', '.join(own[:10])}.",
            )
        return repository

    def upload(self, order: UploadOrder) -> PushResult:
        """Make the repository, send what it lacks, and commit all of it at once.

        Raises:
            PushError: If a file must not leave this machine, or the Hub refuses.
            HubUnreachableError: If the Hub does not answer for too long; what was sent until then need not be sent again.
            StorageError: If a file cannot be read.
        """
        settings, repository = order.settings, order.repository
        branch = settings.revision or _MAIN
        files, left_out = intended_files(order.folder, settings.kind)
        refuse_private_content(order.folder, [file.name for file in files], order.places, self._token)
        create_repo = partial(self.api.create_repo, repository, private=settings.private, exist_ok=True)
        url = str(self._ask("checking", repository, create_repo))
        if branch != _MAIN:
            create_branch = partial(self.api.create_branch, repository, branch=branch, exist_ok=True)
            self._ask("checking", repository, create_branch)
            url = f"{url}/tree/{branch}"
        there = self._require(repository, branch)
        _refuse_conflict(repository, there, settings.kind, private=settings.private)
        additions = [CommitOperationAdd(file.name, order.folder / file.name) for file in files]
        self._send(repository, branch, additions, there)
        commit = self._commit(order, branch, additions)
        # Nothing is called finished that the Hub does not list.
        remote_sizes = self._require(repository, commit).sizes
        if lacking := [file.name for file in files if remote_sizes.get(file.name) != file.size_bytes]:
            raise PushError(
                f"The commit {commit[:10]} in {repository} lacks {lacking[0]}, or holds another one.",
                "Push again, and look at the repository on the Hub.",
            )
        notes = []
        if there.private and not settings.private:
            notes.append(f"{repository} was private already and stays so; its settings on the Hub can change that.")
        notes += [f"{name} is not part of the result and was not sent." for name in left_out]
        return PushResult(
            url=url,
            commit=commit,
            repository=repository,
            private=there.private,
            files=files,
            sent_bytes=self.traffic.sent_bytes,
            notes=tuple(notes),
        )

    def _send(self, repository: str, branch: str, additions: list[CommitOperationAdd], there: _Repository) -> None:
        """Upload large files one after the other; those that arrived in an earlier attempt are only asked for."""
        total = sum(addition.upload_info.size for addition in additions) or 1
        done = 0
        for addition in additions:
            info, name = addition.upload_info, addition.path_in_repo
            message = f"Uploading {name}, {done / 1e6:,.1f} of {total / 1e6:,.1f} MB are there."
            self.report(Progress(phase="uploading", message=message, fraction=done / total))
            done += info.size
            uploads_natively = is_xet_available() and name.endswith(".safetensors")
            if uploads_natively and there.checksums.get(name) == info.sha256.hex():
                continue

            def send(one: CommitOperationAdd = addition) -> None:
                with native_errors_translated(repository):
                    self.api.preupload_lfs_files(repository, [one], revision=branch, free_memory=False, num_threads=1)

            self._ask("uploading", repository, send)
            if uploads_natively:
                self.traffic.sent_bytes += info.size

    def _commit(self, order: UploadOrder, branch: str, additions: list[CommitOperationAdd]) -> str:
        """Commit everything at once, or nothing; return the id of the commit.

        An answer may get lost after the commit was made. Each attempt therefore looks at the repository again: what is
        there already is not a change, and without a change the newest commit is the answer.
        """
        self.report(Progress(phase="committing", message=f"Committing to {order.repository}."))
        new_paths = {addition.path_in_repo for addition in additions}
        holds_weights = KINDS[order.settings.kind].holds_weights
        first_attempt = iter([additions])  # the Hub's answer about the files is valid for the first attempt only

        def commit() -> CommitInfo:
            there = self._require(order.repository, branch)
            stale = [name for name in there.sizes if holds_weights(name) and name not in new_paths]
            operations = next(first_attempt, None) or [_again(addition) for addition in additions]
            return self.api.create_commit(
                order.repository,
                [*operations, *(CommitOperationDelete(name) for name in stale)],
                commit_message=order.message,
                revision=branch,
                parent_commit=there.commit,
                num_threads=1,
            )

        return str(self._ask("committing", order.repository, commit).oid)

    def _require(self, repository: str, revision: str) -> _Repository:
        there = self._look("committing", repository, revision)
        if there is None:
            raise PushError(f"{repository} is no longer on the Hub.", "Push again; it is created again.")
        return there

    def _look(self, phase: Phase, repository: str, revision: str | None) -> _Repository | None:
        """Return the repository at a branch or commit; None where there is none that this account can see."""

        def look() -> _Repository | None:
            try:
                main = self.api.model_info(repository, files_metadata=True)
            except RepositoryNotFoundError:
                return None
            if revision in (None, _MAIN):
                return _describe(main)
            branches = {branch.name for branch in self.api.list_repo_refs(repository).branches}
            if revision not in branches and revision != main.sha and len(revision or "") != 40:
                return _describe(main)._replace(commit=None, sizes={}, checksums={})
            return _describe(self.api.model_info(repository, revision=revision, files_metadata=True))

        return self._ask(phase, repository, look)

    def _ask(self, phase: Phase, repository: str, ask: Callable[[], Answer]) -> Answer:
        def explained() -> Answer:
            with push_errors_explained(repository, self._token):
                return ask()

        return persist(
            explained, self.patience, lambda why: self.report(Progress(phase=phase, message=why)), self.sleep
        )

    @property
    def _token(self) -> str | None:
        return self.api.token if isinstance(self.api.token, str) else None


def _again(addition: CommitOperationAdd) -> CommitOperationAdd:
    """Return the same file without the Hub's earlier answer about it; its checksum is computed only once."""
    fresh = CommitOperationAdd(addition.path_in_repo, addition.path_or_fileobj)
    fresh.upload_info = addition.upload_info
    return fresh


def _describe(info: ModelInfo) -> _Repository:
    siblings = info.siblings or ()
    return _Repository(
        private=bool(info.private),
        commit=info.sha,
        sizes={file.rfilename: file.size or 0 for file in siblings},
        checksums={file.rfilename: file.lfs.sha256 for file in siblings if file.lfs is not None},
    )


def _refuse_conflict(repository: str, there: _Repository, kind: PushKind, *, private: bool) -> None:
    """Never publish what was to stay private, and never mix two kinds of weights, which loaders then guess about."""
    if private and not there.private:
        raise PushError(
            f"{repository} exists and is public, and this push is to be private.",
            "Choose another name, or push it as public on purpose.",
        )
    pushed = KINDS[kind]
    for other in KINDS.values():
        names = sorted(name for name in there.sizes if other.holds_weights(name)) if other is not pushed else []
        if names:
            raise PushError(
                f"{repository} already holds {other.noun} ({names[0]}); with {pushed.noun} added, it would be unclear "
                "which one to load.",
                "Choose another repository, or another branch.",
            )


@contextmanager
def _pushing(given: str | None, request: Request) -> Iterator[HubPush]:
    def report(progress: Progress) -> None:
        if request.is_cancelled():
            raise CancelledRequestError()
        request.progress(progress.model_dump(mode="json"))

    def sleep(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            if request.is_cancelled():
                raise CancelledRequestError()
            time.sleep(min(_LOOK_SECONDS, rest))

    token = given or huggingface_hub.get_token()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise PUSH.explain(Fault(HubFault.NO_TOKEN), "")
    with hub_client() as traffic:
        yield HubPush(HfApi(token=token), report, traffic, sleep=sleep)


def check(params: JsonObject, request: Request) -> JsonObject:
    """Return the repository's full name, unless something speaks against the push."""
    with _pushing(params.pop("token", None), request) as push:
        return {"repository": push.check(params["repository"], PushConfig.model_validate(params["settings"]))}


def upload(params: JsonObject, request: Request) -> JsonObject:
    """Send a folder; what must not leave this machine is looked for first."""
    with _pushing(params.pop("token", None), request) as push:
        return push.upload(UploadOrder.model_validate(params)).model_dump(mode="json")


if __name__ == "__main__":
    serve({"check": check, "upload": upload})
