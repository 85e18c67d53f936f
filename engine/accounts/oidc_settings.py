"""The OpenID Connect provider of a lab, as an admin describes it in a file that only the lab's user reads."""

import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, Field, SecretStr, StringConstraints, ValidationError

from loratory.engine.errors import AccountError

_URL = re.compile(r"https://[A-Za-z0-9.\[\]:_-]+(/[A-Za-z0-9._~!$&()*+,;=:@%/-]*)?(\?[A-Za-z0-9._~!$&()*+,;=:@%/?-]*)?")
_CREDENTIALS = Path("/run/credentials")  # of services, which systemd guards; their group bits are the mask of a list

Claims = Mapping[str, Any]


def require_https(url: str) -> str:
    """Return an address of a provider.

    Raises:
        ValueError: If it is not https, or has a user name, a fragment, or characters that need quoting in HTML.
    """
    if not _URL.fullmatch(url):
        raise ValueError("should be an https address without a user name or a fragment")
    return url


HttpsUrl = Annotated[str, AfterValidator(require_https)]
Word = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]+$", max_length=500)]


class MemberRule(BaseModel, frozen=True, extra="forbid"):
    """Who becomes a member without an invitation: people to whom all that is set here applies."""

    email_domains: tuple[Word, ...] = ()  # the address has one of these domains, and the provider has verified it
    groups: tuple[str, ...] = ()  # the person is in one of these groups
    # The claim that lists groups: names, or objects whose `sub` is an id, as Hugging Face has for `orgs`.
    group_claim: str = "groups"

    @property
    def is_set(self) -> bool:
        """Whether anyone becomes a member without an invitation."""
        return bool(self.email_domains or self.groups)

    def admits(self, sources: tuple[Claims, ...]) -> bool:
        """Return whether a person becomes a member. Address and verification count where one source has both."""
        if not self.is_set:
            return False
        by_domain = not self.email_domains or any(self._has_domain(claims) for claims in sources)
        return by_domain and (not self.groups or any(self._has_group(claims) for claims in sources))

    def _has_domain(self, claims: Claims) -> bool:
        email = claims.get("email")
        if claims.get("email_verified") is not True or not isinstance(email, str):
            return False
        return email.rpartition("@")[2].lower() in {domain.lower() for domain in self.email_domains}

    def _has_group(self, claims: Claims) -> bool:
        claim = claims.get(self.group_claim)
        entries = claim if isinstance(claim, list) else []
        groups = [entry.get("sub") if isinstance(entry, dict) else entry for entry in entries]
        return any(isinstance(group, str) and group in self.groups for group in groups)


class OidcSettings(BaseModel, frozen=True, extra="forbid", hide_input_in_errors=True):
    """A provider, as an admin describes it in a file."""

    issuer: HttpsUrl  # its address, exactly as its tokens name it
    client_id: Word  # of this lab, given by the provider
    client_secret: SecretStr = Field(min_length=1, max_length=2_000)  # given with it
    # For the buttons; the host of the issuer where it is empty.
    name: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=40)] = ""
    # What to ask for; `openid` is always asked for, `email` where a rule needs it.
    scopes: tuple[Word, ...] = ("profile",)
    members: MemberRule = MemberRule()  # who becomes a member without an invitation; without it, no one

    @property
    def host(self) -> str:
        """The provider in messages and in the audit log."""
        return urlsplit(self.issuer).netloc

    @property
    def title(self) -> str:
        """The provider on buttons."""
        return self.name or self.host

    @property
    def scope(self) -> str:
        """What is asked for."""
        email = ("email",) if self.members.email_domains else ()
        return " ".join(dict.fromkeys(("openid", *self.scopes, *email)))


def read_oidc_settings(path: Path) -> OidcSettings:
    """Read the file that describes a provider. No message holds any of its values.

    Raises:
        AccountError: If others may read it, or it cannot be used.
    """
    try:
        with path.open(encoding="utf-8") as file:
            if stat.S_IMODE(path.stat().st_mode) & 0o077 and not path.resolve().is_relative_to(_CREDENTIALS):
                raise AccountError(f"Others may read {path}, which holds a secret.", f"Run chmod 600 {path}.")
            values = yaml.safe_load(file)
        return OidcSettings.model_validate(values or {})
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise AccountError(f"{path} cannot be read ({reason}).", "Give a YAML file with --oidc.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f", line {mark.line + 1}" if mark is not None else ""
        raise AccountError(f"{path}{position}: not valid YAML.", "Correct the file.") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        setting = ".".join(str(part) for part in first["loc"]) or "the file"
        raise AccountError(f"{path}: {setting}: {first['msg'].lower()}.", "Correct the file.") from None
