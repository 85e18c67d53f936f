"""The file of a provider is for the lab's user alone, and no message about it holds its secret."""

import subprocess
import sys

import pytest

from loratory.engine.accounts.accounts import digest_of
from loratory.engine.accounts.oidc import ROUND_SECONDS, Endpoints, Round, Rounds
from loratory.engine.accounts.oidc_settings import MemberRule, OidcSettings, read_oidc_settings
from loratory.engine.errors import AccountError

GOOD = "issuer: https://gitlab.example.edu\nclient_id: lab\nclient_secret: canary-7\n"
ENDPOINTS = Endpoints("https://id/a", "https://id/t", "https://id/k", None, False, False)


def write_settings(tmp_path, text, mode=0o600):
    path = tmp_path / "oidc.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_least_that_a_provider_needs(tmp_path):
    settings = read_oidc_settings(write_settings(tmp_path, GOOD))

    assert (settings.title, settings.host, settings.scope) == (
        "gitlab.example.edu",
        "gitlab.example.edu",
        "openid profile",
    )
    assert settings.client_secret.get_secret_value() == "canary-7"
    assert not settings.members.is_set
    assert "canary" not in repr(settings)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    with pytest.raises(AccountError, match="chmod 600"):
        read_oidc_settings(write_settings(tmp_path, GOOD, mode))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("https", "http"), "issuer: .*https"), (GOOD + "scope: openid\n", "scope"), ("client_secret: canary-7\n", "issuer"),
        (GOOD.replace("https://", "https://user:canary-7@"), "issuer"), (GOOD.replace("canary-7", "[canary-7]"), "client_secret"),
        ("canary-7: [", "line 1|line 2"), ("- canary-7", "the file"), (GOOD.replace("client_id: lab", "client_id: 'a b'"), "client_id"),
        (GOOD + "members: everyone-canary-7\n", "members"), ("\xff", "issuer|not|the file"), ("", "issuer"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_without_a_value(tmp_path, text, message):
    with pytest.raises(AccountError, match=message) as error_info:
        read_oidc_settings(write_settings(tmp_path, text))
    assert "canary" not in str(error_info.value)
    assert "canary" not in repr(error_info.value.__cause__)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(AccountError, match="cannot be read"):
        read_oidc_settings(tmp_path / "none.yaml")


def test_without_a_rule_no_one_is_admitted_and_groups_may_be_objects_with_ids():
    claims = {"email": "a@b.example", "email_verified": True, "groups": ["x"], "orgs": [{"sub": "5e67", "name": "lab"}]}
    assert not MemberRule().admits((claims,))
    assert MemberRule(groups=("5e67",), group_claim="orgs").admits((claims,))
    assert not MemberRule(groups=("lab",), group_claim="orgs").admits((claims,)), "names change hands"
    assert MemberRule(email_domains=("B.example",)).admits((claims,))


def test_the_settings_bring_nothing_heavy():
    script = "import sys, loratory.engine.accounts.oidc_settings, loratory.ui.front.identities; print({'httpx', 'joserfc', 'cryptography'} & set(sys.modules) - {'httpx'})"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )


def test_a_round_ends_once_in_time_in_its_own_browser_and_their_number_is_bounded():
    now = [1_000.0]
    rounds = Rounds(lambda: now[0])

    def begin():
        round_ = Round("sign in", ENDPOINTS, now[0], digest_of("cookie"))
        rounds.add(round_)
        return round_

    first, late, foreign = begin(), begin(), begin()
    assert rounds.take(first.state, "cookie") is first
    assert rounds.take(first.state, "cookie") is None
    assert rounds.take(foreign.state, "other") is None
    assert rounds.take(foreign.state, "cookie") is None, "used up by the other browser"
    now[0] += ROUND_SECONDS + 1
    assert rounds.take(late.state, "cookie") is None
    for _ in range(5_000):
        begin()
    with pytest.raises(AccountError, match="Too many people"):
        begin()
    now[0] += ROUND_SECONDS + 1
    assert rounds.take(begin().state, "cookie") is not None
    assert not any(secret in repr(first) for secret in (first.state, first.nonce, first.verifier))


def test_email_is_asked_for_where_a_rule_needs_it():
    values = {"issuer": "https://id.example", "client_id": "lab", "client_secret": "x"}
    assert OidcSettings(**values, members={"email_domains": ["b.example"]}).scope == "openid profile email"
    assert OidcSettings(**values, scopes=["openid", "groups"]).scope == "openid groups"
