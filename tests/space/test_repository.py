"""The files of a Space: what Hugging Face documents about them, and what a build of them needs."""

import re

import pytest
import yaml
from packaging.requirements import Requirement

from loratory.engine.errors import ConfigError, ModelError
from loratory.engine.space.repository import SCOPES, SpacePlan, address_of, front_matter, space_files
from loratory.engine.wheel import Wheel

WHEEL = Wheel("loratory-0.2.0-py3-none-any.whl", "123456789abc", b"PK")
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# Source: https://huggingface.co/docs/hub/spaces-config-reference, and of the scopes https://huggingface.co/docs/hub/oauth.
DOCUMENTED = {
    "title": str, "emoji": str, "colorFrom": str, "colorTo": str, "sdk": str, "python_version": str, "sdk_version": str,
    "suggested_hardware": str, "suggested_storage": str, "app_file": str, "app_build_command": str, "app_port": int,
    "base_path": str, "fullWidth": bool, "header": str, "short_description": str, "models": list, "datasets": list,
    "tags": list, "thumbnail": str, "pinned": bool, "hf_oauth": bool, "hf_oauth_scopes": list,
    "hf_oauth_expiration_minutes": int, "hf_oauth_authorized_org": list, "disable_embedding": bool,
    "startup_duration_timeout": str, "custom_headers": dict, "preload_from_hub": list, "license": str,
}  # fmt: skip
OF_SDK = {"docker": {"app_port"}, "gradio": {"sdk_version", "python_version", "app_file", "preload_from_hub"}}
DOCUMENTED_SCOPES = {
    "email", "read-billing", "read-repos", "gated-repos", "contribute-repos", "write-repos", "manage-repos",
    "read-collections", "write-collections", "inference-api", "jobs", "webhooks", "write-discussions",
}  # fmt: skip


def files_of(**plan) -> dict[str, str]:
    files = space_files(SpacePlan("ada/loratory", **plan), WHEEL)
    return {name: data.decode() for name, data in files.items()}


@pytest.mark.parametrize("sdk", ["docker", "gradio"])
def test_the_front_matter_has_documented_keys_with_documented_values(sdk):
    text = files_of(sdk=sdk)["README.md"]
    head = yaml.safe_load(re.fullmatch(r"---\n(.*?)\n---\n.*", text, re.DOTALL)[1])

    assert head == front_matter(SpacePlan("ada/loratory", sdk))
    assert {key for key, value in head.items() if not isinstance(value, DOCUMENTED[key])} == set()
    assert head.keys().isdisjoint(set.union(*OF_SDK.values()) - OF_SDK[sdk])
    assert OF_SDK[sdk] <= head.keys()
    assert {head["colorFrom"], head["colorTo"]} <= COLORS
    assert len(head["short_description"]) <= 60
    assert 0 < head["hf_oauth_expiration_minutes"] <= 43_200
    assert re.fullmatch(r"\d+[hm]", head["startup_duration_timeout"])
    assert set(head["hf_oauth_scopes"]) == set(SCOPES) <= DOCUMENTED_SCOPES


def test_no_scope_reaches_what_a_person_had_before():
    assert {"read-repos", "write-repos", "manage-repos"}.isdisjoint(SCOPES)


def test_the_app_listens_at_the_port_of_the_front_matter():
    files = files_of()
    assert "app_port: 7860" in files["README.md"]
    assert "EXPOSE 7860" in files["Dockerfile"]
    assert files["Dockerfile"].rstrip().endswith('CMD ["loratory", "ui"]')


def test_everything_of_the_image_belongs_to_user_1000():
    steps = [line for line in files_of(hardware="t4-small")["Dockerfile"].splitlines() if line[:1].isupper()]
    user = steps.index("USER user")
    as_root = [step for step in steps[:user] if step.startswith("RUN")]
    assert [re.match(r"RUN (apt-get|useradd)", step) is not None for step in as_root] == [True, True]
    assert "--uid 1000" in as_root[1]
    assert all("--chown=user" in step for step in steps if step.startswith("COPY"))
    assert not any(step.startswith("HEALTHCHECK") for step in steps)  # its failures would rebuild a Space for ever


def test_what_changes_with_each_version_comes_after_what_is_large():
    steps = files_of()["Dockerfile"]
    assert steps.index("torch>=") < steps.index("requirements.txt") < steps.index(WHEEL.file_name) < steps.index("warm")


def test_a_gpu_decides_on_the_build_of_pytorch():
    cpu, gpu = files_of()["Dockerfile"], files_of(hardware="l4x1")["Dockerfile"]
    assert "pip install --index-url https://download.pytorch.org/whl/cpu 'torch>=" in cpu
    assert "pip install 'torch>=" in gpu
    assert "gcc" in gpu
    assert "gcc" not in cpu


def test_the_requirements_are_those_of_the_package_and_of_sign_in():
    names = {Requirement(line).name for line in files_of()["requirements.txt"].splitlines()}
    assert {"torch", "gradio", "peft", "joserfc"} <= names
    assert {"pytest", "wandb", "loratory", "llama-cpp-python"}.isdisjoint(names)
    assert all("extra" not in line for line in files_of()["requirements.txt"].splitlines())


def test_the_demo_model_and_those_asked_for_are_in_the_image():
    files = files_of(models=("qwen/qwen2.5-0.5b-instruct", "Qwen/Qwen3-0.6B"))
    assert "warm smollm2-135m-instruct Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen3-0.6B" in files["Dockerfile"]
    assert yaml.safe_load(files["README.md"].split("---\n")[1])["models"][2] == "Qwen/Qwen3-0.6B"


def test_a_gradio_space_has_no_dockerfile_and_starts_the_same_command():
    files = files_of(sdk="gradio")
    assert files.keys() == {"README.md", "requirements.txt", "app.py", WHEEL.file_name}
    assert '"-P", "-m", "loratory.engine.cli", "ui"' in files["app.py"]
    compile(files["app.py"], "app.py", "exec")


@pytest.mark.parametrize(
    "name", ["loratory", "ada/", "/x", "ada/x/y", "ada/a b", "ada/$(id)", "ada/..", "a--b/c", "ada/x.git", "ada/x\n", "ada/" + "x" * 96]
)  # fmt: skip
def test_names_that_no_space_can_have_are_refused(name):
    with pytest.raises(ConfigError, match="not formed like owner/name"):
        SpacePlan(name)


@pytest.mark.parametrize("model", ["/etc", "../x", "x; curl evil", "no-such-model", "a b/c", "$(id)/x"])
def test_a_model_that_could_not_be_one_never_gets_into_a_dockerfile(model):
    with pytest.raises(ModelError, match="neither in the catalogue"):
        files_of(models=(model,))


def test_a_gated_model_is_refused_for_no_build_could_fetch_it():
    with pytest.raises(ModelError, match="is gated"):
        files_of(models=("google/gemma-3-270m-it",))


@pytest.mark.parametrize("hardware", ["", "t4 small", "t4-small; x", "T4"])
def test_hardware_is_a_plain_name(hardware):
    with pytest.raises(ConfigError, match="not hardware"):
        SpacePlan("ada/x", hardware=hardware)


def test_zero_gpu_takes_its_client_and_pytorch_for_cuda():
    files = files_of(sdk="gradio", hardware="zero-a10g")
    lines = files["requirements.txt"].splitlines()
    assert "spaces" in {Requirement(line).name for line in lines}  # and no --extra-index-url
    assert yaml.safe_load(files["README.md"].split("---\n")[1])["suggested_hardware"] == "zero-a10g"
    assert "spaces" not in files_of(sdk="gradio")["requirements.txt"]


def test_zero_gpu_in_a_container_is_refused_with_what_to_add():
    with pytest.raises(ConfigError, match=r"Gradio Spaces alone\. Create one with --sdk gradio"):
        SpacePlan("ada/x", "docker", "zero-a10g")


def test_the_direct_address_is_a_host_name():
    assert address_of("Ada_L/my.Space") == "https://ada-l-my-space.hf.space"
