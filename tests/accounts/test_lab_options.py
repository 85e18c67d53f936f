"""A lab does not start where its options would let others name people, or its provider cannot be used."""

import pwd

import pytest

from app import main

LAB = ["--lab", "--public-url", "https://gpu.lab.example"]
OTHER = next(one.pw_name for one in pwd.getpwall() if one.pw_name == "daemon" or one.pw_uid > 1)


@pytest.fixture
def provider(tmp_path):
    path = tmp_path / "oidc.yaml"
    path.write_text("issuer: https://id.example\nclient_id: lab\nclient_secret: canary-7\n")
    path.chmod(0o600)
    return path


def refusal_of(capsys, *options):
    assert main([*LAB, *map(str, options)]) == 1
    words = capsys.readouterr().err
    assert "canary" not in words
    return words


def test_a_header_that_names_people_needs_a_socket(tmp_path, capsys):
    pem = tmp_path / "pem"
    pem.write_text("")
    tls = ("--tls-cert", pem, "--tls-key", pem)
    assert "Give --socket" in refusal_of(capsys, *tls, "--identity-header", "X-Remote-User", "--proxy-user", OTHER)


def test_people_are_named_by_one_service(tmp_path, capsys, provider):
    named = ("--identity-header", "X-Remote-User", "--proxy-user", OTHER)
    assert "Give --oidc or" in refusal_of(capsys, "--socket", tmp_path / "s", "--oidc", provider, *named)


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_secret_that_others_may_read_is_not_used(tmp_path, capsys, provider, mode):
    provider.chmod(mode)
    assert f"chmod 600 {provider}" in refusal_of(capsys, "--socket", tmp_path / "s", "--oidc", provider)
