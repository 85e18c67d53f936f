"""Which variables reach the processes that we start: what they need, and no secret that is not for them."""

import os

import pytest

from loratory.engine.processes.spawn import Access, environment_for, give_up_access, has_hub_login

SECRETS = {
    "HF_TOKEN": "hf_secret",
    "HUGGING_FACE_HUB_TOKEN": "hf_secret",
    "HF_TOKEN_PATH": "/home/ann/token",
    "WANDB_API_KEY": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "OPENAI_API_KEY": "secret",
    "PIP_INDEX_URL": "https://ann:secret@mirror",
    "LORATORY_API_KEY": "secret",
    "HF_HUB_TOKEN": "secret",
    "DATABASE_URL": "postgres://ann:secret@db",
}
NEEDED = {
    "PATH": "/bin",
    "HOME": "/home/ann",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "1",
    "OMP_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HOME": "/cache",
    "HF_HUB_OFFLINE": "1",
    "https_proxy": "http://proxy",
    "SSL_CERT_FILE": "/certificates",
    "LORATORY_HOME": "/loratory",
}


def test_what_is_needed_is_passed_and_no_secret_is():
    variables = environment_for((), SECRETS | NEEDED)

    assert variables.items() >= NEEDED.items()
    assert not any("secret" in value or "/home/ann/token" in value for value in variables.values())


def test_without_access_a_login_in_a_file_is_not_found_either(tmp_path):
    assert environment_for((), {"HF_HOME": str(tmp_path)})["HF_TOKEN_PATH"] == os.devnull


@pytest.mark.parametrize(
    ("access", "names"),
    [
        (Access.HUB, {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"}),
        (Access.WANDB, {"WANDB_API_KEY"}),
        (Access.PACKAGE_INDEX, {"PIP_INDEX_URL"}),
    ],
)
def test_access_to_one_thing_is_access_to_nothing_else(access, names):
    variables = environment_for((access,), SECRETS)

    assert {name for name, value in variables.items() if value == SECRETS.get(name)} == names


def test_access_can_be_given_up(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    give_up_access(Access.HUB)

    assert "HF_TOKEN" not in os.environ
    assert os.environ["HF_TOKEN_PATH"] == os.devnull
    assert os.environ["WANDB_API_KEY"] == "secret"


def test_a_login_is_found_in_the_environment_and_in_its_file(monkeypatch, tmp_path):
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert not has_hub_login()

    (tmp_path / "token").write_text("hf_secret")
    assert has_hub_login()

    (tmp_path / "token").unlink()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert has_hub_login()
