"""A lab that is started as an admin starts it offers the provider, and shows its secret nowhere."""

import os
import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.browser.real_server import contents_of, running

CANARY = "canary-of-a-client-secret"


@pytest.mark.e2e
@pytest.mark.parametrize("way", ["file", "header"])
def test_a_lab_offers_what_its_options_say(tmp_path, way):
    settings = tmp_path / "oidc.yaml"
    settings.write_text(f"issuer: https://127.0.0.1:9\nclient_id: lab\nclient_secret: {CANARY}\nname: Example ID\n")
    settings.chmod(0o600)
    options = {"file": ["--oidc", settings], "header": ["--identity-header", "X-Remote-User", "--proxy-user", "nobody"]}
    command = [
        sys.executable, "app.py", "--lab", "--public-url", "https://gpu.lab.example", "--socket", tmp_path / "s", *options[way],
    ]  # fmt: skip
    environment = {**os.environ, "LORATORY_HOME": str(tmp_path / "home"), "WANDB_API_KEY": CANARY}
    log = tmp_path / "log"
    with running(command, log, lambda: answers(tmp_path / "s"), environment) as lab:
        process = Path("/proc") / str(lab.pid)
        if way == "header":
            with pytest.raises(httpx.TransportError):
                send(tmp_path / "s", "GET", "/sign-in")
            return
        assert "Sign in with Example ID" in send(tmp_path / "s", "GET", "/sign-in").text
        answer = send(tmp_path / "s", "POST", "/sign-in/with", {"for": "sign in"})
        assert "Example ID does not answer" in answer.text
        outputs = [
            answer.content,
            log.read_bytes(),
            (process / "cmdline").read_bytes(),
            (process / "environ").read_bytes(),
        ]
        outputs += contents_of(tmp_path / "home").values()
        assert not [part for part in outputs if CANARY.encode() in part]


def answers(path):
    """Whether the lab answers, or hangs up, which is an answer as well."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
    return True


def send(path, method, url, form=None):
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(base_url="http://gpu.lab.example", transport=transport, timeout=300) as client:
        return client.request(method, url, headers={"Origin": "https://gpu.lab.example"}, data=form)
