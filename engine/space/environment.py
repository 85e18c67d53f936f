"""What Hugging Face and the owner set in the environment of a Space, and how the server keeps it without the secrets there.

Names of the variables: https://huggingface.co/docs/hub/spaces-overview#helper-environment-variables and
https://huggingface.co/docs/hub/spaces-oauth.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import SecretStr, TypeAdapter, ValidationError

from loratory.engine.accounts.lab import PublicAddress
from loratory.engine.accounts.oidc_settings import OidcSettings
from loratory.engine.chat.zero_gpu import ZeroGpu
from loratory.engine.errors import AccountError, EngineError
from loratory.engine.paths import HANDED_OVER, IN_A_SPACE

ADMITTED = "LORATORY_ADMITTED"
BUCKET = "LORATORY_BUCKET"
PORT = 7860  # `app_port` of a Space where it names no other
HUB = "https://huggingface.co"
_OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OPENID_PROVIDER_URL")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"  # of a person, an organization, a repository; also an id of 24 hex digits
_REPOSITORY = re.compile(f"{_NAME}/{_NAME}")


@dataclass(frozen=True)
class SpaceEnvironment:
    """A Space, as its environment describes it."""

    space_id: str  # such as `ann/loratory`
    host: str  # at which browsers reach it, such as `ann-loratory.hf.space`
    creator: str  # user id of the person who created it
    author: str  # name of the person or organization that owns it
    client_id: str  # of the OAuth app that Hugging Face made for it
    client_secret: str = field(repr=False)  # given with it
    scopes: tuple[str, ...] = ()  # what the app may ask people for
    provider: str = HUB  # address of the OpenID provider
    # Of the owner, for the mirror of runs; None where there is none.
    token: str | None = field(default=None, repr=False)
    # Names or ids of people and organizations that the owner lets in; lower case.
    admitted_names: frozenset[str] = frozenset()
    bucket: str | None = None  # for the mirror of runs, as `owner/name`; None where there is none
    zero_gpu: Mapping[str, str] = field(default_factory=dict)  # variables of ZeroGPU; empty on other hardware

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "SpaceEnvironment":
        """Read what is set in a Space. No message holds a value that may be a secret.

        Raises:
            AccountError: If something is missing or cannot be used.
        """
        if missing := [name for name in _OAUTH if not environment.get(name, "").strip()]:
            raise AccountError(
                f"People cannot sign in to this Space: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set.",
                "Add `hf_oauth: true` to the front matter of its README.md.",
            )
        values = {name: value.strip() for name, value in environment.items()}
        space_id, creator = values.get(IN_A_SPACE, ""), values.get("SPACE_CREATOR_USER_ID", "")
        if not _REPOSITORY.fullmatch(space_id):
            raise AccountError("SPACE_ID is not a name like ann/loratory.", "Start it as Hugging Face does.")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", creator):
            raise AccountError(
                "SPACE_CREATOR_USER_ID is not the id of a person.",
                "Restart it in its settings; Hugging Face sets the variable.",
            )
        space = cls(
            space_id,
            values.get("SPACE_HOST", "").lower(),
            creator,
            values.get("SPACE_AUTHOR_NAME", "") or space_id.partition("/")[0],
            values["OAUTH_CLIENT_ID"],
            values["OAUTH_CLIENT_SECRET"],
            tuple(values.get("OAUTH_SCOPES", "").split()),
            values["OPENID_PROVIDER_URL"].rstrip("/"),
            values.get("HF_TOKEN") or None,
            _parse_names(values.get(ADMITTED, "")),
            _bucket(values.get(BUCKET, "")),
            zero.variables if (zero := ZeroGpu.read(values)) is not None else {},
        )
        _ = space.address, space.oidc  # both can be used
        return space

    @property
    def address(self) -> PublicAddress:
        """The one address of the lab.

        Raises:
            AccountError: If the host cannot be one.
        """
        if not self.host:
            raise AccountError("SPACE_HOST is not set.", "Restart the Space; Hugging Face sets the variable.")
        return PublicAddress.parse(f"https://{self.host}")

    @property
    def oidc(self) -> OidcSettings:
        """Hugging Face as the provider of identities.

        Raises:
            AccountError: If a value cannot be used.
        """
        try:
            return OidcSettings(
                issuer=self.provider,
                client_id=self.client_id,
                client_secret=SecretStr(self.client_secret),
                name="Hugging Face",
                scopes=tuple(dict.fromkeys(("profile", *self.scopes))),
            )
        except ValidationError as error:
            setting = str(error.errors(include_input=False)[0]["loc"][0])
            names = {"issuer": "OPENID_PROVIDER_URL", "client_id": "OAUTH_CLIENT_ID", "scopes": "OAUTH_SCOPES"}
            raise AccountError(
                f"{names.get(setting, 'OAUTH_CLIENT_SECRET')} cannot be used.",
                "Leave the variable to Hugging Face: remove one of that name in the settings of the Space.",
            ) from None

    @property
    def duplicate_url(self) -> str:
        """Where a person makes a Space of their own from this one."""
        return f"{HUB}/spaces/{self.space_id}?duplicate=true"

    def hand_over(self) -> int:
        """Write this into a file of memory that a program which replaces this one inherits; returns its number."""
        file = os.memfd_create("space", 0)
        os.write(file, TypeAdapter(SpaceEnvironment).dump_json(self))
        os.lseek(file, 0, os.SEEK_SET)
        return file

    @classmethod
    def take_over(cls, number: str) -> "SpaceEnvironment":
        """Read what `hand_over` wrote, once: the file is closed.

        Raises:
            EngineError: If there is no such file.
        """
        try:
            with os.fdopen(int(number), "rb") as file:
                return TypeAdapter(cls).validate_json(file.read())
        except (OSError, ValueError):
            raise EngineError(f"{HANDED_OVER} names no file of a Space.", "Remove this variable.") from None


def _parse_names(text: str) -> frozenset[str]:
    names = [name.strip().removeprefix("@") for name in text.split(",")]
    for number, name in enumerate(names, 1):
        if name and not re.fullmatch(_NAME, name):
            raise AccountError(
                f"Entry {number} of {ADMITTED} is not the name of a person or an organization.",
                "List names or ids, separated by commas.",
            )
    return frozenset(name.lower() for name in names if name)


def _bucket(name: str) -> str | None:
    if name and not _REPOSITORY.fullmatch(name):
        raise AccountError(f"{BUCKET} is not the name of a bucket.", "Give it as owner/name, or remove the variable.")
    return name or None
