"""Putting a folder into a repository of the Hub: what is missing is uploaded, then everything appears in one commit."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils._runtime import is_xet_available

from engine.config.results import PushConfig, PushKind
from engine.errors import HubUnreachableError, PushError
from engine.export.contract import ExportedFile, HubAccount, PushPhase, PushProgress, UploadOrder, UploadResult
from engine.export.kinds import KINDS
from engine.export.push.files import intended_files
from engine.export.push.hub_answers import (
    PATIENCE,
    Patience,
    Traffic,
    native_errors_translated,
    persist,
    push_errors_explained,
)

Answer = TypeVar("Answer")

_MAIN = "main"


class _Repository(NamedTuple):
    """The present state of a repository on the Hub."""

    private: bool
    commit: str | None  # of the branch; None where the branch is missing
    sizes: dict[str, int]  # bytes by name, of that commit
    checksums: dict[str, str]  # sha256 by name, of large files


@dataclass
class HubPush:
    """One push, as far as the Hub is concerned. Everything in it can be repeated without doing anything twice.

    Args:
        api: huggingface_hub's, with the token in it.
        report: Gets how far it is.
        traffic: Counts what goes over the line.
        patience: How often the Hub is asked again when it does not serve.
        sleep: Waits for so many seconds; may raise where the push was stopped.
    """

    api: HfApi
    report: Callable[[PushProgress], None]
    traffic: Traffic = field(default_factory=Traffic)
    patience: Patience = PATIENCE
    sleep: Callable[[float], None] = time.sleep

    def account(self) -> HubAccount:
        """Whose token this is.

        Raises:
            PushError: If the Hub does not accept it.
            HubUnreachableError: If the Hub does not answer.
        """

        def who() -> HubAccount:
            answer = self.api.whoami()
            names = tuple(str(organization["name"]) for organization in answer.get("orgs") or ())
            return HubAccount(name=str(answer["name"]), organizations=names)

        return self._ask("checking", "your account", who)

    def check(self, account: HubAccount, repository: str, settings: PushConfig) -> None:
        """Find out what would speak against a push, before anything is prepared.

        Raises:
            PushError: If the repository is more public than wanted, holds something of another kind, or would have to be
                made for an owner whom the account does not belong to.
            HubUnreachableError: If the Hub does not answer.
        """
        there = self._look("checking", repository, settings.revision)
        if there is not None:
            _refuse_conflict(repository, there, settings.kind, private=settings.private)
            return
        owner = repository.partition("/")[0]
        own = (account.name, *account.organizations)
        if owner.casefold() not in {name.casefold() for name in own}:
            raise PushError(
                f"There is no {repository} that you can see, and {account.name} may not make one for {owner}.",
                f"Name an owner that your token may write to: {', '.join(own[:10])}.",
            )

    def upload(self, order: UploadOrder) -> UploadResult:
        """Make the repository, send what it lacks, and commit all of it at once.

        Raises:
            PushError: If the Hub refuses.
            HubUnreachableError: If the Hub does not answer for too long; what was sent until then need not be sent again.
            StorageError: If a file cannot be read.
        """
        settings, repository = order.settings, order.repository
        branch = settings.revision or _MAIN
        files = intended_files(order.folder, settings.kind).files
        url = str(
            self._ask(
                "checking",
                repository,
                lambda: self.api.create_repo(repository, private=settings.private, exist_ok=True),
            )
        )
        if branch != _MAIN:
            self._ask("checking", repository, lambda: self.api.create_branch(repository, branch=branch, exist_ok=True))
        there = self._require(repository, branch)
        _refuse_conflict(repository, there, settings.kind, private=settings.private)
        additions = [CommitOperationAdd(file.name, order.folder / file.name) for file in files]
        self._send(repository, branch, additions, there)
        commit = self._commit(order, branch, additions)
        self._prove(repository, commit, files)
        notes = []
        if there.private and not settings.private:
            notes.append(f"{repository} was private already and stays so; its settings on the Hub can change that.")
        return UploadResult(
            url=url if branch == _MAIN else f"{url}/tree/{branch}",
            commit=commit,
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
            size, name = addition.upload_info.size, addition.path_in_repo
            message = f"Uploading {name}, {done / 1e6:,.1f} of {total / 1e6:,.1f} MB are there."
            self.report(PushProgress(phase="uploading", message=message, fraction=done / total))
            uploads_natively = is_xet_available() and name.endswith(".safetensors")
            known = there.checksums.get(name) if uploads_natively else None
            if known is not None and known == addition.upload_info.sha256.hex():
                done += size
                continue

            def send(one: CommitOperationAdd = addition) -> None:
                with native_errors_translated(repository):
                    self.api.preupload_lfs_files(repository, [one], revision=branch, free_memory=False, num_threads=1)

            self._ask("uploading", repository, send)
            if uploads_natively:
                self.traffic.sent_bytes += size
            done += size

    def _commit(self, order: UploadOrder, branch: str, additions: list[CommitOperationAdd]) -> str:
        """Commit everything at once, or nothing; return the id of the commit.

        An answer may get lost after the commit was made. Each attempt therefore looks at the repository again: what is
        there already is not a change, and without a change the newest commit is the answer.
        """
        self.report(PushProgress(phase="committing", message=f"Committing to {order.repository}."))
        kept = {addition.path_in_repo for addition in additions}
        known = iter([additions])  # what the Hub said of the files holds for the first attempt only

        def commit() -> CommitInfo:
            there = self._require(order.repository, branch)
            stale = [
                name for name in there.sizes if KINDS[order.settings.kind].holds_weights(name) and name not in kept
            ]
            sent = next(known, None) or [_again(addition) for addition in additions]
            return self.api.create_commit(
                order.repository,
                [*sent, *(CommitOperationDelete(name) for name in stale)],
                commit_message=order.message,
                revision=branch,
                parent_commit=there.commit,
                num_threads=1,
            )

        return str(self._ask("committing", order.repository, commit).oid)

    def _prove(self, repository: str, commit: str, files: tuple[ExportedFile, ...]) -> None:
        """Nothing is called finished that the Hub does not list."""
        there = self._require(repository, commit)
        lacking = [file.name for file in files if there.sizes.get(file.name) != file.size_bytes]
        if lacking:
            raise PushError(
                f"The commit {commit[:10]} in {repository} lacks {lacking[0]}, or holds another one.",
                "Push again, and look at the repository on the Hub.",
            )

    def _require(self, repository: str, revision: str) -> _Repository:
        there = self._look("committing", repository, revision)
        if there is None:
            raise PushError(f"{repository} is no longer on the Hub.", "Push again; it is created again.")
        return there

    def _look(self, phase: PushPhase, repository: str, revision: str | None) -> _Repository | None:
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

    def _ask(self, phase: PushPhase, repository: str, ask: Callable[[], Answer]) -> Answer:
        def explained() -> Answer:
            with push_errors_explained(repository, self.api.token if isinstance(self.api.token, str) else None):
                return ask()

        return persist(
            explained,
            self.patience,
            lambda message: self.report(PushProgress(phase=phase, message=message)),
            self.sleep,
        )


def _again(addition: CommitOperationAdd) -> CommitOperationAdd:
    """The same file, with nothing remembered of what the Hub said about it; its checksum is not worked out twice."""
    fresh = CommitOperationAdd(addition.path_in_repo, addition.path_or_fileobj)
    fresh.upload_info = addition.upload_info
    return fresh


def _describe(info: object) -> _Repository:
    siblings = getattr(info, "siblings", None) or ()
    large = {file.rfilename: file.lfs.sha256 for file in siblings if getattr(file, "lfs", None) is not None}
    commit = getattr(info, "sha", None)
    if commit is not None and not isinstance(commit, str):
        raise HubUnreachableError("The Hub's answer makes no sense.", "Try again later.")
    return _Repository(
        private=bool(getattr(info, "private", False)),
        commit=commit,
        sizes={file.rfilename: file.size or 0 for file in siblings},
        checksums=large,
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
        found = sorted(name for name in there.sizes if other.holds_weights(name)) if other is not pushed else []
        if found:
            raise PushError(
                f"{repository} already holds {other.noun} ({found[0]}); with {pushed.noun} added, it would be unclear "
                "which one to load.",
                "Choose another repository, or another branch.",
            )
