"""The files that run a lab as a service are accepted by what reads them, and hold nothing that was smuggled in."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loratory.engine.accounts.deployment import Deployment
from loratory.engine.accounts.lab import PublicAddress
from loratory.engine.cli import run_command
from loratory.engine.errors import AccountError, EngineError

ADDRESS = PublicAddress.parse("https://gpu.lab.example")
TLS = {"certificate": Path("/etc/ssl/lab.pem"), "key": Path("/etc/ssl/lab.key")}

NAMES = {"identity_header": "X-Remote-User", "proxy_user": "caddy"}

IN_CI = bool(os.environ.get("CI"))  # where no check is skipped


def service_of(deployment):
    """Return the last value of each setting of the unit."""
    return dict(line.split("=", 1) for line in deployment.unit().splitlines() if "=" in line and line[0] != "#")


def test_runs_outlive_the_page_and_files_are_for_the_user_alone():
    service = service_of(Deployment(ADDRESS))

    assert service["KillMode"] == "process"
    assert service["OOMPolicy"] == "continue"
    assert service["User"] == "loratory"
    assert service["UMask"] == "0077"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["ReadWritePaths"] == "/var/lib/loratory"
    assert service["RuntimeDirectoryMode"] == "0750"
    assert service["CapabilityBoundingSet"] == ""
    assert "LORATORY_HOME=/var/lib/loratory" in service["Environment"]
    assert "--socket /run/loratory/page.sock" in service["ExecStart"]
    assert "PrivateTmp" not in service


def test_without_a_proxy_the_key_is_handed_over_by_systemd():
    service = service_of(Deployment(ADDRESS, **TLS))

    assert "LoadCredential=tls-cert:/etc/ssl/lab.pem" in Deployment(ADDRESS, **TLS).unit()
    assert service["LoadCredential"] == "tls-key:/etc/ssl/lab.key"
    assert "--port 443 --tls-cert %d/tls-cert --tls-key %d/tls-key" in service["ExecStart"]
    assert "/etc/ssl" not in service["ExecStart"]
    assert service["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"
    high = PublicAddress.parse("https://gpu.lab.example:8443")
    assert service_of(Deployment(high, **TLS))["AmbientCapabilities"] == ""


def test_the_file_of_a_provider_is_handed_over_by_systemd():
    unit = Deployment(ADDRESS, oidc=Path("/etc/loratory/oidc.yaml")).unit()
    assert "LoadCredential=oidc:/etc/loratory/oidc.yaml\n" in unit
    assert "--socket /run/loratory/page.sock --oidc %d/oidc\n" in unit
    assert "RuntimeDirectoryMode=0750" in unit
    assert "LoadCredential" not in Deployment(ADDRESS).unit()
    with pytest.raises(AccountError, match="cannot be used"):
        Deployment(ADDRESS, oidc=Path("oidc.yaml"))


def test_a_proxy_that_names_people_drops_what_a_client_sent():
    deployment = Deployment(ADDRESS, **NAMES)

    assert "page.sock --identity-header X-Remote-User --proxy-user caddy\n" in deployment.unit()
    site = deployment.caddyfile()
    assert site.index("route {") < site.index("request_header -X-Remote-User") < site.index("reverse_proxy")
    assert "identity-header" not in Deployment(ADDRESS).unit()
    assert "request_header" not in Deployment(ADDRESS).caddyfile()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy_user": None}, "needs the proxy"), ({"identity_header": None}, "needs the proxy"),
        ({"identity_header": "Cookie"}, "cannot name people"), ({"identity_header": "X-User\nExecStart=/bin/sh"}, "cannot name"),
        ({"proxy_user": ""}, "system user"), ({"proxy_user": "caddy x"}, "system user"), ({"proxy_user": "loratory"}, "runs as"),
        (TLS, "through it alone"), ({"oidc": Path("/etc/oidc.yaml")}, "through it alone"),
    ],
)  # fmt: skip
def test_a_proxy_that_others_could_stand_in_for_is_refused(changes, message):
    with pytest.raises(EngineError, match=message):
        Deployment(ADDRESS, **{**NAMES, **changes})


@pytest.mark.parametrize("home", ["relative", "/a b", "/a\nExecStart=/bin/sh", "/a/%h", "/a/../b", "/", "/a;b", "/{b}"])
def test_a_path_that_a_unit_would_read_otherwise_is_refused(home):
    with pytest.raises(AccountError, match="cannot be used"):
        Deployment(ADDRESS, home=Path(home))


@pytest.mark.parametrize("user", ["", "Root", "a b", "a\nb", "-a", "a" * 40])
def test_a_user_name_that_a_unit_would_read_otherwise_is_refused(user):
    with pytest.raises(AccountError, match="system user"):
        Deployment(ADDRESS, user=user)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None and not IN_CI, reason="needs systemd-analyze")
@pytest.mark.parametrize("tls", [{}, TLS, {"oidc": Path("/etc/oidc.yaml")}, NAMES])
def test_systemd_accepts_the_unit(tmp_path, tls):
    unit = tmp_path / "loratory.service"
    program = tmp_path / "loratory"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    deployment = Deployment(ADDRESS, user="root", **tls)
    started = service_of(deployment)["ExecStart"].split()[0]
    unit.write_text(deployment.unit().replace(started, str(program)))

    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)

    assert "loratory.service" not in checked.stderr
    assert checked.returncode == 0


@pytest.mark.skipif(shutil.which("caddy") is None and not IN_CI, reason="needs caddy")
@pytest.mark.parametrize("options", [{}, NAMES])
def test_caddy_accepts_the_site(tmp_path, options):
    site = Deployment(ADDRESS, **options).caddyfile()
    (tmp_path / "Caddyfile").write_text(
        site.replace("# forward_auth", "forward_auth").replace("# \t", "\t").replace("# }", "}")
    )

    checked = subprocess.run(
        ["caddy", "adapt", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert checked.returncode == 0
    assert '"dial":"unix//run/loratory/page.sock"' in checked.stdout
    assert "trusted_proxies" not in checked.stdout


def test_one_file_alone_can_be_redirected(capsys):
    assert run_command(["lab", "files", "caddy", "--public-url", "https://gpu.lab.example"]) == 0
    assert capsys.readouterr().out.startswith("gpu.lab.example {")
    assert run_command(["lab", "files", "--public-url", "https://gpu.lab.example"]) == 0
    assert "# /etc/systemd/system/loratory.service\n[Unit]" in capsys.readouterr().out
    assert run_command(["lab", "files", "--public-url", "http://gpu.lab.example"]) == 1
    arguments = [
        "lab",
        "files",
        "service",
        "--public-url",
        "https://gpu.lab.example",
        "--identity-header",
        "X-Remote-User",
    ]
    assert run_command(arguments) == 1
    assert "--proxy-user" in capsys.readouterr().err
    assert run_command([*arguments, "--proxy-user", "caddy"]) == 0
    assert "--identity-header X-Remote-User --proxy-user caddy" in capsys.readouterr().out
