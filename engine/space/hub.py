"""A Space on the Hub: make it, update it, watch it start, delete it. Each request can be repeated without harm."""

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Literal, NamedTuple, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, SpaceRuntime
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import SpaceInfo

from loratory.engine.chat.zero_gpu import ZERO_GPU
from loratory.engine.errors import ConfigError, PushError
from loratory.engine.hub import SPACE, Fault, HubFault, RetryPolicy, RunBucket, quoted
from loratory.engine.places.huggingface_jobs.account import price_per_hour_usd
from loratory.engine.space.environment import ADMITTED, BUCKET
from loratory.engine.space.repository import Sdk, Settings, SpacePlan, Visibility, address_of, hardware_problem, is_ours

Answer = TypeVar("Answer")

_FREE_SLEEP_SECONDS = 48 * 3600  # of cpu-basic; cannot be changed
_POLL_SECONDS = 5.0
_UNTIL_IT_BUILDS_SECONDS = 60.0  # after a commit, the old state may still be reported
_LOG_LINES = 20


class Stage(NamedTuple):
    """What a state of a Space means."""

    text: str  # for people, after "The Space"
    is_end: bool = True  # whether it stays like that until something is done
    has_failed: bool = False  # whether it does not run, and should
    log: Literal["build", "run"] | None = None  # that explains it


# Source: huggingface_hub.SpaceStage; SLEEPING is not in it, but is what the Hub reports.
STAGES: Mapping[str, Stage] = {
    "RUNNING": Stage("is running."),
    "SLEEPING": Stage("is asleep and wakes up with the next visit."),
    "PAUSED": Stage("is paused and costs nothing; restart it in its settings."),
    "STOPPED": Stage("is stopped; restart it in its settings.", has_failed=True, log="run"),
    "BUILDING": Stage("is building its image.", is_end=False),
    "RUNNING_BUILDING": Stage("is running, and builds its next image.", is_end=False),
    "APP_STARTING": Stage("is starting.", is_end=False),
    "RUNNING_APP_STARTING": Stage("is running, and starts its next version.", is_end=False),
    "NO_APP_FILE": Stage("has no files yet; `loratory space update` sends them.", has_failed=True),
    "CONFIG_ERROR": Stage("has settings in README.md that the Hub rejects.", has_failed=True),
    "BUILD_ERROR": Stage("could not build its image.", has_failed=True, log="build"),
    "RUNTIME_ERROR": Stage("ended, or did not answer in time.", has_failed=True, log="run"),
    "DELETING": Stage("is being deleted."),
}


def stage_of(name: str | Enum) -> Stage:
    """Return what a state means; one that is not known counts as failed."""
    text = str(name.value if isinstance(name, Enum) else name)
    unknown = f"is in the state {text[:40]}, which this version does not know."
    return STAGES.get(text) or Stage(unknown, has_failed=True)


class Status(NamedTuple):
    """A Space as the Hub reports it."""

    name: str  # as owner/name
    stage: str  # as the Hub names it
    text: str  # the same for people
    hardware: str | None  # that it has; None before the first build
    requested_hardware: str | None  # that it is to have
    price_per_hour_usd: float | None  # while it runs; None where the Hub lists none
    sleep_seconds: int | None  # without a visit, until it sleeps; None if it never does
    address: str  # of the app itself, where people sign in
    page: str  # of the Space on the Hub
    bucket: str | None = None  # to which runs are mirrored
    has_token: bool = False  # whether it may write there
    admitted_names: str | None = None  # as the owner listed them
    log: tuple[str, ...] = ()  # its last lines, where they explain the stage


class UploadResult(NamedTuple):
    """What an upload changed."""

    changed_files: tuple[str, ...]  # new, or with other content
    removed_files: tuple[str, ...]  # of an older version
    commit: str  # on the Hub after it


@dataclass
class SpaceHub:
    """Spaces, as one login sees them."""

    api: HfApi  # with the token in it
    report: Callable[[str], None]  # gets a line of progress
    retry_policy: RetryPolicy = RetryPolicy()  # noqa: RUF009 - cannot be changed

    def prices(self) -> dict[str, float]:
        """Return what Spaces can run on by name, with the price of an hour in USD."""
        hardware = self._request("A Space", self.api.list_spaces_hardware)
        # ZeroGPU has no price by the hour: people have a quota of seconds a day.
        return {ZERO_GPU: 0.0} | {machine.name: price_per_hour_usd(machine) for machine in hardware}

    def find(self, name: str) -> SpaceInfo | None:
        """Return a Space; None where there is none that this login can see."""

        def fetch() -> SpaceInfo | None:
            try:
                return self.api.space_info(name, files_metadata=True)
            except RepositoryNotFoundError as error:
                if error.response.status_code == 404:
                    return None
                raise

        return self._request(name, fetch)

    def require(self, name: str) -> SpaceInfo:
        """Return a Space; raises PushError where there is none."""
        status = self.find(name)
        if status is None:
            raise SPACE.explain(Fault(HubFault.MISSING), name)
        return status

    def refuse_unless_possible(self, plan: SpacePlan) -> float:
        """Check what can be known before anything is made, and return the price per hour in USD.

        Raises:
            ConfigError: If there is no such hardware.
            PushError: If the account may not make it, or the Space exists.
        """
        account = self._request("A Space", self.api.whoami)
        own = [str(namespace["name"]) for namespace in (account, *(account.get("orgs") or ()))]
        owner = plan.name.partition("/")[0]
        if owner.casefold() not in {name.casefold() for name in own}:
            raise PushError(
                f"{own[0]} may not make a Space for {owner}.",
                f"Name an owner that your token may write to: {', '.join(own[:10])}.",
            )
        if self.find(plan.name) is not None:
            what = f"The Space {plan.name} already exists."
            raise PushError(what, "Use `loratory space update`, or choose another name.")
        return self.price(plan.hardware)

    def price(self, hardware: str) -> float:
        """Return the price of an hour in USD.

        Raises:
            ConfigError: If there is no such hardware.
        """
        prices = self.prices()
        if hardware not in prices:
            raise ConfigError([hardware_problem(hardware, list(prices))])
        return prices[hardware]

    def make(self, plan: SpacePlan, visibility: Visibility, settings: Settings) -> None:
        """Create the Space with secrets, variables and hardware, in one request; it has no files yet.

        It was not there a moment ago, so one that is there after a lost answer is ours.
        """
        if settings.bucket:
            self.make_bucket(settings.bucket)
        self.report(f"Creating {plan.name}.")
        secrets = [{"key": key, "value": value} for key, value in settings.secrets.items()]
        if names := settings.admit_list:  # a secret, not a variable: those are public, and copied into duplicates
            secrets.append({"key": ADMITTED, "value": names, "description": names})
        variables = [{"key": BUCKET, "value": settings.bucket}] if settings.bucket else None
        self._request(
            plan.name,
            lambda: self.api.create_repo(
                plan.name,
                repo_type="space",
                visibility=visibility,
                exist_ok=True,
                space_sdk=plan.sdk,
                space_hardware=plan.hardware,  # type: ignore[arg-type]  # newer hardware is not in the enumeration
                space_sleep_time=settings.sleep_seconds,
                space_secrets=secrets or None,
                space_variables=variables,
            ),
        )

    def make_bucket(self, bucket: str) -> None:
        """Create the private bucket of a Space where it is missing; raises PushError where it is public."""
        self.report(f"Creating the bucket {bucket}.")
        self._request(bucket, RunBucket(self.api, bucket, lambda _: nullcontext()).make)

    def change(self, name: str, settings: Settings) -> list[str]:
        """Set what is given, and return in words what was set."""
        changes = []
        for key, value in settings.secrets.items():
            self._request(name, partial(self.api.add_space_secret, name, key, value))
            changes.append(f"secret {key}")
        if settings.admit is not None:
            if names := settings.admit_list:
                self._request(name, lambda: self.api.add_space_secret(name, ADMITTED, names, description=names))
            elif ADMITTED in self._request(name, lambda: self.api.get_space_secrets(name)):
                self._request(name, lambda: self.api.delete_space_secret(name, ADMITTED))
            changes.append(f"admitted: {names or 'the owner alone'}")
        if settings.bucket:
            bucket = settings.bucket
            self.make_bucket(bucket)
            self._request(name, lambda: self.api.add_space_variable(name, BUCKET, bucket))
            changes.append(f"bucket {bucket}")
        elif settings.bucket == "":
            if self.bucket_of(name) is not None:
                self._request(name, lambda: self.api.delete_space_variable(name, BUCKET))
            changes.append("no bucket")
        if settings.hardware is not None:
            hardware, seconds = settings.hardware, settings.sleep_seconds
            self._request(name, lambda: self.api.request_space_hardware(name, hardware, sleep_time=seconds))  # type: ignore[arg-type]
            changes.append(f"hardware {hardware}")
        elif settings.sleep_seconds is not None:
            seconds = settings.sleep_seconds
            self._request(name, lambda: self.api.set_space_sleep_time(name, seconds))
            changes.append(f"sleeps after {seconds / 3600:g} h")
        return changes

    def upload(self, name: str, files: Mapping[str, bytes], message: str) -> UploadResult:
        """Send the files that differ, in one commit; without a difference, none is made."""
        self.report(f"Sending files to {name}.")

        result = UploadResult((), (), "")

        def upload() -> UploadResult:
            nonlocal result
            there = self.require(name)
            hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in there.siblings or ()}
            changed_files = tuple(file for file, data in files.items() if hashes.get(file) not in _hashes(data))
            removed = tuple(sorted(file for file in hashes if is_ours(file) and file not in files))
            if not changed_files and not removed:  # perhaps by a commit whose answer was lost
                return result._replace(commit=str(there.sha))
            result = UploadResult(changed_files, removed, "")
            additions = [CommitOperationAdd(file, files[file]) for file in changed_files]
            deletions = [CommitOperationDelete(file) for file in removed]
            commit = self.api.create_commit(name, [*additions, *deletions], commit_message=message, repo_type="space")
            return result._replace(commit=str(commit.oid))

        return self._request(name, upload)

    def wait(self, name: str, commit: str, limit_seconds: float) -> Status:
        """Return the state in which a Space stays after a commit, reporting those before.

        Raises:
            PushError: If it has not got there in time; it continues.
        """
        elapsed, last, has_built = 0.0, "", False
        while True:
            runtime = self.runtime(name)
            stage, revision = stage_of(runtime.stage), runtime.raw.get("sha")
            has_built = has_built or not stage.is_end
            is_old = not has_built and elapsed < _UNTIL_IT_BUILDS_SECONDS
            # One that is paused or asleep may stay with the commit that it had.
            is_done = (
                revision == commit or (revision is None and not is_old) if runtime.stage == "RUNNING" else not is_old
            )
            if stage.is_end and is_done:
                return self.status(name, runtime)
            if runtime.stage != last and not stage.is_end:
                self.report(f"The Space {stage.text}")
                last = runtime.stage
            if elapsed >= limit_seconds:
                raise PushError(
                    f"The Space {name} is not running within {limit_seconds / 60:.0f} min: it {stage.text}",
                    "It continues without this command; check `loratory space status`.",
                )
            self.retry_policy.sleep(_POLL_SECONDS)
            elapsed += _POLL_SECONDS

    def runtime(self, name: str) -> SpaceRuntime:
        """Return what the Hub reports of a Space at work."""
        return self._request(name, lambda: self.api.get_space_runtime(name))

    def status(self, name: str, runtime: SpaceRuntime | None = None) -> Status:
        """Return what a Space does now, or did when the Hub was asked."""
        info = self.require(name)
        runtime = runtime or self.runtime(name)
        stage = stage_of(runtime.stage)
        hardware = runtime.hardware or runtime.requested_hardware
        secrets = self._request(name, lambda: self.api.get_space_secrets(name))
        return Status(
            name=name,
            stage=str(runtime.stage),
            text=stage.text + quoted(str(runtime.raw.get("errorMessage") or ""), self._token).replace(":", "", 1),
            hardware=runtime.hardware,
            requested_hardware=runtime.requested_hardware,
            price_per_hour_usd=self.prices().get(str(hardware)),
            sleep_seconds=runtime.sleep_time or (_FREE_SLEEP_SECONDS if hardware == "cpu-basic" else None),
            address=info.host or address_of(name),
            page=f"{self.api.endpoint}/spaces/{name}",
            bucket=self.bucket_of(name),
            has_token="HF_TOKEN" in secrets,
            admitted_names=secrets[ADMITTED].description if ADMITTED in secrets else None,
            log=self._log(name, stage.log) if stage.log else (),
        )

    def delete(self, name: str, bucket: str | None = None) -> None:
        """Delete a Space, and a bucket with it."""
        self._request(name, lambda: self.api.delete_repo(name, repo_type="space", missing_ok=True))
        if bucket is not None:
            self._request(bucket, lambda: self.api.delete_bucket(bucket, missing_ok=True))

    def bucket_of(self, name: str) -> str | None:
        """Return the bucket to which a Space mirrors its runs; None where it has none."""
        variables = self._request(name, lambda: self.api.get_space_variables(name))
        return variables[BUCKET].value if BUCKET in variables else None

    def _log(self, name: str, kind: str) -> tuple[str, ...]:
        """Return the last lines of a log; none where the Hub has none, for they only explain."""
        with suppress(Exception):
            lines = deque(self.api.fetch_space_logs(name, build=kind == "build"), maxlen=_LOG_LINES)
            texts = (quoted(line, self._token).removeprefix(": ") for line in lines)
            return tuple(line for line in texts if line)
        return ()

    def _request(self, name: str, request: Callable[[], Answer]) -> Answer:
        return SPACE.retry(name, request, self._token, self.report, self.retry_policy)

    @property
    def _token(self) -> str | None:
        return self.api.token if isinstance(self.api.token, str) else None


def sdk_of(info: SpaceInfo) -> Sdk:
    """Return the kind of a Space.

    Raises:
        PushError: If it is of a kind that Loratory does not write.
    """
    kinds: dict[str | None, Sdk] = {"docker": "docker", "gradio": "gradio"}
    if info.sdk in kinds:
        return kinds[info.sdk]
    raise PushError(f"{info.id} is a {info.sdk or 'plain'} Space, which is not Loratory's.", "Choose another one.")


def _hashes(data: bytes) -> tuple[str, str]:
    """Return by what the Hub knows a content: as a large file, and as one of git."""
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - git's
