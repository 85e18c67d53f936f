"""A header names people only where no one but the proxy can send it; a lab does not start where its options allow more."""

import os
import pwd
import socket
from pathlib import Path

import pytest

from loratory.app import main
from loratory.engine.accounts.listener import Listener, TrustedProxy
from loratory.engine.errors import DeviceError

LAB = ["--lab", "--public-url", "https://gpu.lab.example"]
SOCKET = Listener(Path("/run/loratory/page.sock"))
TLS = Listener(None, "0.0.0.0", 443, Path("/c"), Path("/k"))
OWN = pwd.getpwuid(os.geteuid()).pw_name
OTHER = next(user for user in pwd.getpwall() if user.pw_uid not in (0, os.geteuid()))


def test_header_and_user_of_the_proxy_are_given_together_with_a_socket():
    assert TrustedProxy.chosen(None, None, TLS) is None
    chosen = TrustedProxy.chosen("X-Remote-User", OTHER.pw_name, SOCKET)
    assert chosen == TrustedProxy("x-remote-user", OTHER.pw_uid)


@pytest.mark.parametrize(
    ("header", "user", "listener", "message"),
    [
        ("X-Remote-User", None, SOCKET, "needs the proxy"), (None, OTHER.pw_name, SOCKET, "needs the proxy"),
        ("X-Remote-User", OTHER.pw_name, TLS, "anyone could send"), ("X-Remote-User", OWN, SOCKET, "lab itself"),
        ("X-Remote-User", "no-such-user-here", SOCKET, "no system user"), ("X-Remote-User", "a\0b", SOCKET, "no system user"),
        ("", OTHER.pw_name, SOCKET, "cannot name"), ("X Remote", OTHER.pw_name, SOCKET, "cannot name"),
        ("Host", OTHER.pw_name, SOCKET, "cannot name"), ("COOKIE", OTHER.pw_name, SOCKET, "cannot name"),
        ("X-Forwarded-User", OTHER.pw_name, SOCKET, "cannot name"), ("X-Remote-User\r\nA", OTHER.pw_name, SOCKET, "cannot name"),
    ],
)  # fmt: skip
def test_what_would_let_others_name_people_is_refused(header, user, listener, message):
    with pytest.raises(DeviceError, match=message):
        TrustedProxy.chosen(header, user, listener)


def has_ended(client):
    try:
        return client.recv(5) == b""
    except ConnectionResetError:  # what was sent was not read
        return True


@pytest.mark.parametrize("is_proxy", [True, False])
def test_the_socket_hangs_up_on_everyone_but_the_proxy(tmp_path, is_proxy):
    listener = Listener.chosen(str(tmp_path / "page.sock"), "", 0, None, None)
    proxy = TrustedProxy("x-remote-user", os.geteuid() if is_proxy else OTHER.pw_uid)
    with proxy.guard(listener.open()) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.listen()
        client.settimeout(300)
        client.connect(str(tmp_path / "page.sock"))
        client.sendall(b"hello")
        if is_proxy:
            connection, _ = listening.accept()
            with connection:
                assert connection.recv(5) == b"hello"
        else:
            with pytest.raises(ConnectionAbortedError):
                listening.accept()
            assert has_ended(client)


@pytest.fixture
def provider(tmp_path):
    path = tmp_path / "oidc.yaml"
    path.write_text("issuer: https://id.example\nclient_id: lab\nclient_secret: canary-7\n")
    path.chmod(0o600)
    return path


def refusal_of(capsys, *options):
    assert main([*LAB, *map(str, options)]) == 1
    message = capsys.readouterr().err
    assert "canary" not in message
    return message


def test_a_header_that_names_people_needs_a_socket(tmp_path, capsys):
    pem = tmp_path / "pem"
    pem.write_text("")
    tls = ("--tls-cert", pem, "--tls-key", pem)
    assert "Give --socket" in refusal_of(
        capsys, *tls, "--identity-header", "X-Remote-User", "--proxy-user", OTHER.pw_name
    )


def test_people_are_named_by_one_service(tmp_path, capsys, provider):
    options = ("--identity-header", "X-Remote-User", "--proxy-user", OTHER.pw_name)
    assert "Give --oidc or" in refusal_of(capsys, "--socket", tmp_path / "s", "--oidc", provider, *options)


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_a_secret_that_others_may_read_is_not_used(tmp_path, capsys, provider, mode):
    provider.chmod(mode)
    assert f"chmod 600 {provider}" in refusal_of(capsys, "--socket", tmp_path / "s", "--oidc", provider)
