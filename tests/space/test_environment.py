"""A Space is read from its environment, refuses what is missing in words, and shows no secret."""

import os

import pytest

from loratory.engine.errors import EngineError
from loratory.engine.space.environment import SpaceEnvironment

CANARY = "canary-1f0c"
GIVEN = {
    "SPACE_ID": "Ann/loratory", "SPACE_HOST": "ann-loratory.hf.space", "SPACE_CREATOR_USER_ID": "6032802e1f993496bc14d9e3",
    "SPACE_AUTHOR_NAME": "Ann", "OAUTH_CLIENT_ID": "b8a9", "OAUTH_CLIENT_SECRET": f"secret-{CANARY}",
    "OAUTH_SCOPES": "openid profile jobs", "OPENID_PROVIDER_URL": "https://huggingface.co", "HF_TOKEN": f"hf_{CANARY}",
    "LORATORY_ADMITTED": "Bea, @gpu-lab ,,6a", "LORATORY_BUCKET": "Ann/runs",
}  # fmt: skip


def test_what_hugging_face_and_the_owner_set_is_read():
    space = SpaceEnvironment.read(GIVEN)

    assert space.address.origin == "https://ann-loratory.hf.space"
    assert (space.author, space.bucket, space.token) == ("Ann", "Ann/runs", f"hf_{CANARY}")
    assert space.admitted_names == {"bea", "gpu-lab", "6a"}
    assert space.oidc.scope == "openid profile jobs"
    assert space.oidc.title == "Hugging Face"
    assert space.duplicate_url == "https://huggingface.co/spaces/Ann/loratory?duplicate=true"


def test_what_an_owner_need_not_set_may_be_missing():
    optional = ("HF_TOKEN", "LORATORY_ADMITTED", "LORATORY_BUCKET", "OAUTH_SCOPES", "SPACE_AUTHOR_NAME")
    space = SpaceEnvironment.read({name: value for name, value in GIVEN.items() if name not in optional})

    assert (space.token, space.bucket, space.admitted_names, space.author) == (None, None, frozenset(), "Ann")
    assert space.oidc.scope == "openid profile"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OAUTH_CLIENT_ID", "", "hf_oauth: true"),
        ("OAUTH_CLIENT_SECRET", " ", "hf_oauth: true"),
        ("OPENID_PROVIDER_URL", "", "hf_oauth: true"),
        ("OPENID_PROVIDER_URL", "http://huggingface.co", "OPENID_PROVIDER_URL cannot be used"),
        ("OAUTH_CLIENT_SECRET", CANARY * 500, "OAUTH_CLIENT_SECRET cannot be used"),
        ("OAUTH_CLIENT_ID", "two words", "OAUTH_CLIENT_ID cannot be used"),
        ("SPACE_ID", "../x", "SPACE_ID"),
        ("SPACE_HOST", "", "SPACE_HOST is not set"),
        ("SPACE_HOST", "evil.example/path", "not an https address"),
        ("SPACE_HOST", "ann@evil.example", "not an https address"),
        ("SPACE_CREATOR_USER_ID", "", "SPACE_CREATOR_USER_ID"),
        ("SPACE_CREATOR_USER_ID", "a b", "SPACE_CREATOR_USER_ID"),
        ("LORATORY_ADMITTED", f"bea, {CANARY}/x", "Entry 2"),
        ("LORATORY_ADMITTED", "bea;cid", "Entry 1"),
        ("LORATORY_BUCKET", CANARY, "LORATORY_BUCKET"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_message(name, value, message):
    with pytest.raises(EngineError) as error_info:
        SpaceEnvironment.read({**GIVEN, name: value})
    assert message in str(error_info.value)
    assert CANARY not in str(error_info.value)


def test_secrets_are_in_no_text():
    space = SpaceEnvironment.read(GIVEN)
    assert CANARY not in f"{space} {space!r} {space.oidc!r}"


ZERO = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": "http://device-api.zero"}


@pytest.mark.parametrize("zero", [{}, ZERO])
def test_a_space_is_handed_over_once(zero):
    space = SpaceEnvironment.read({**GIVEN, **zero})
    assert space.zero_gpu == zero
    number = space.hand_over()
    assert os.get_inheritable(number)
    assert SpaceEnvironment.take_over(str(number)) == space
    for other in (str(number), "-1", "x", ""):
        with pytest.raises(EngineError):
            SpaceEnvironment.take_over(other)
