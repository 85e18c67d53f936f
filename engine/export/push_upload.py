"""The process that uploads to the Hub: `python -P -m loratory.engine.export.push_upload`, JSON lines on stdio, without torch.

A separate process can be ended in the middle of a large file. The token comes from the request, the environment or the
login, and is sent to the Hub alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from loratory.engine.chat.contract import JobProgress, OnProgress, Phase
from loratory.engine.config.results import PushConfig, PushKind
from loratory.engine.errors import PushError
from loratory.engine.export.contract import ExportedFile, PushResult, UploadOrder
from loratory.engine.export.folder import intended_files, refuse_private_content
from loratory.engine.export.kinds import KINDS
from loratory.engine.hub import PUSH, Fault, HubFault, RetryPolicy
from loratory.engine.processes.messages import JsonObject, Request, serve
from loratory.engine.quantities import size

Answer = TypeVar("Answer")

_MAIN = "main"


class _Repository(NamedTuple):
    """The current state of a repository on the Hub."""

    is_private: bool
    commit: str | None  # of the branch; None if there is no such branch
    sizes: dict[str, int]  # bytes by name, of that commit


@dataclass
class HubPush:
    """The requests to the Hub of one push. Each can be repeated safely."""

    api: HfApi  # with the token in it
    report: OnProgress
    retry_policy: RetryPolicy = RetryPolicy()  # noqa: RUF009 - cannot be changed

    def check(self, name: str, settings: PushConfig) -> str:
        """Check that a push is possible, and return the repository's full name.

        Raises:
            PushError: If the Hub does not accept the token, or the repository is public but should be private, has weights
                of another kind, or belongs to an owner that the account is not a member of.
            HubUnreachableError: If the Hub does not answer.
        """
        account = self._request("checking", "Pushing", self.api.whoami)
        own = [str(member["name"]) for member in (account, *(account.get("orgs") or ()))]
        repository = name if "/" in name else f"{own[0]}/{name}"
        present = self._request("checking", repository, partial(self._read, repository, settings.revision or _MAIN))
        if present is not None:
            _refuse_conflict(repository, present, settings.kind, private=settings.private)
            return repository
        owner = repository.partition("/")[0]
        if owner.casefold() not in {name.casefold() for name in own}:
            raise PushError(
                f"{repository} does not exist or is not visible to {own[0]}, who may not create it for {owner}.",
                f"Name an owner that your token may write to: {', '.join(own[:10])}.",
            )
        return repository

    def upload(self, order: UploadOrder) -> PushResult:
        """Create the repository, upload the files that it lacks, and commit them all at once.

        Raises:
            PushError: If a file has private content, or the Hub refuses.
            HubUnreachableError: If the Hub does not answer for too long; the next push resumes the upload.
            StorageError: If a file cannot be read.
        """
        settings, repository = order.settings, order.repository
        files, left_out = intended_files(order.folder, settings.kind)
        refuse_private_content(order.folder, [file.name for file in files], order.private_folders, self._token)
        url = self._request("checking", repository, partial(self._make, order))
        total = size(sum(file.size_bytes for file in files))
        self._report("uploading", f"Uploading {len(files)} files ({total}) to {repository}.")
        commit = self._request("uploading", repository, partial(self._commit, order, files))
        self._report("committing", f"Checking the commit in {repository}.")
        is_private = self._request("committing", repository, partial(self._require, repository, commit)).is_private
        notes = [f"{name} is not part of the export and was not sent." for name in left_out]
        if is_private and not settings.private:
            notes.insert(
                0, f"{repository} was private already and stays private; change that in its settings on the Hub."
            )
        return PushResult(
            url=url, commit=commit, repository=repository, private=is_private, files=files, notes=tuple(notes)
        )

    def _make(self, order: UploadOrder) -> str:
        """Create the repository and the branch if needed; return their URL."""
        repository, branch = order.repository, order.settings.revision
        url = str(self.api.create_repo(repository, private=order.settings.private, exist_ok=True))
        if branch in (None, _MAIN):
            return url
        self.api.create_branch(repository, branch=branch, exist_ok=True)
        return f"{url}/tree/{branch}"

    def _commit(self, order: UploadOrder, files: Sequence[ExportedFile]) -> str:
        """Commit all files at once; return the id of the commit.

        The response to an earlier attempt may have been lost, so the branch is read first: without a change, its newest
        commit is returned.
        """
        settings, repository, branch = order.settings, order.repository, order.settings.revision or _MAIN
        present = self._require(repository, branch)
        _refuse_conflict(repository, present, settings.kind, private=settings.private)
        names, holds_weights = {file.name for file in files}, KINDS[settings.kind].holds_weights
        stale = [name for name in present.sizes if holds_weights(name) and name not in names]
        try:
            commit = self.api.create_commit(
                repository,
                [
                    *(CommitOperationAdd(name, order.folder / name) for name in sorted(names)),
                    *map(CommitOperationDelete, stale),
                ],
                commit_message=order.message,
                revision=branch,
                parent_commit=present.commit,
                num_threads=1,  # so an interrupted upload has complete files
            )
        except (ConnectionError, TimeoutError):  # of the native uploader (Xet), which not every Hub supports
            constants.HF_HUB_DISABLE_XET = True
            raise
        return str(commit.oid)

    def _require(self, repository: str, revision: str) -> _Repository:
        present = self._read(repository, revision)
        if present is None:
            raise PushError(f"{repository} is no longer on the Hub.", "Push again; it is created again.")
        return present

    def _read(self, repository: str, revision: str) -> _Repository | None:
        """Return the repository at a branch or commit; None if the account cannot see one."""
        try:
            info = self.api.model_info(repository, revision=revision, files_metadata=True)
        except RepositoryNotFoundError:
            return None
        except RevisionNotFoundError:
            return _Repository(bool(self.api.model_info(repository).private), None, {})
        return _Repository(
            bool(info.private), info.sha, {file.rfilename: file.size or 0 for file in info.siblings or ()}
        )

    def _request(self, phase: Phase, name: str, request: Callable[[], Answer]) -> Answer:
        return PUSH.retry(name, request, self._token, partial(self._report, phase), self.retry_policy)

    def _report(self, phase: Phase, message: str) -> None:
        self.report(JobProgress(phase=phase, message=message))

    @property
    def _token(self) -> str | None:
        return self.api.token if isinstance(self.api.token, str) else None


def _refuse_conflict(repository: str, present: _Repository, kind: PushKind, *, private: bool) -> None:
    """Refuse a public repository for a private push, and a second kind of weights, which makes loading ambiguous."""
    if private and not present.is_private:
        raise PushError(
            f"{repository} is public, but this push should be private.",
            "Choose another name, or push it as public.",
        )
    pushed = KINDS[kind]
    for other in KINDS.values():
        names = sorted(name for name in present.sizes if other.holds_weights(name)) if other is not pushed else []
        if names:
            raise PushError(
                f"{repository} already has {other.noun} ({names[0]}); with {pushed.noun} added, it would be unclear "
                "which one to load.",
                "Choose another repository, or another branch.",
            )


def _push_of(personal_token: str | None, request: Request) -> HubPush:
    token = personal_token or huggingface_hub.get_token()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise PUSH.explain(Fault(HubFault.NO_TOKEN), "Pushing")
    return HubPush(HfApi(token=token), lambda progress: request.progress(progress.model_dump(mode="json")))


def check(params: JsonObject, request: Request) -> JsonObject:
    """Check that a push is possible; return the repository's full name."""
    push = _push_of(params.pop("token", None), request)
    return {"repository": push.check(params["repository"], PushConfig.model_validate(params["settings"]))}


def upload(params: JsonObject, request: Request) -> JsonObject:
    """Upload a folder, after a search for private content."""
    push = _push_of(params.pop("token", None), request)
    return push.upload(UploadOrder.model_validate(params)).model_dump(mode="json")


if __name__ == "__main__":
    serve({"check": check, "upload": upload})
