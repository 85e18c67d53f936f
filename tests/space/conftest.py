"""What tests of Spaces share."""

import functools

import pytest

from loratory.engine.cli import run_command
from loratory.engine.commands import space as space_command
from loratory.engine.hub import RetryPolicy
from loratory.engine.space import hub as space_hub
from loratory.engine.wheel import Wheel
from tests.hub.server import TOKEN
from tests.hub.spaces import SpacesHub
from tests.space.fake_bucket import FakeBucket
from tests.space.mirrored import Spaces


@pytest.fixture
def hub(monkeypatch):
    """Serve the stand-in to the login of this test, without waits."""
    with SpacesHub() as stand_in:
        stand_in.serve_all(monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        quick = functools.partial(space_hub.SpaceHub, retry_policy=RetryPolicy(attempts=3, sleep=lambda _: None))
        monkeypatch.setattr(space_hub, "SpaceHub", quick)
        # The real one takes a while to build, and has tests of its own.
        monkeypatch.setattr(
            space_command, "build_wheel", lambda: Wheel("loratory-0.2.0-py3-none-any.whl", "1", b"PK\x03\x04 small")
        )
        yield stand_in


@pytest.fixture
def bucket():
    """Return an empty bucket in memory."""
    return FakeBucket()


@pytest.fixture
def spaces(bucket, tmp_path):
    """Spaces that start on the bucket."""
    return Spaces(bucket, tmp_path)


@pytest.fixture
def home(spaces, monkeypatch):
    """Return the disk of the first Space, which `loratory` uses as well."""
    disk = spaces.disk()
    monkeypatch.setenv("LORATORY_HOME", str(disk.root))
    return disk


@pytest.fixture
def loratory(capfd):
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_command(("space", *arguments), ("loratory.engine.commands.space",))
        output = capfd.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def refusal(loratory):
    """Return what a command that is refused prints on stderr."""

    def call(*arguments: str) -> str:
        code, out, err = loratory(*arguments)
        assert (code, out) == (1, "")
        return err

    return call
