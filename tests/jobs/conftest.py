"""What tests of jobs share: a stand-in for Hugging Face, a home whose runs go there, and a lab."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import _xet

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.lab import change_settings
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.huggingface_jobs import job
from loratory.engine.wheel import build_wheel
from tests.hub.jobs import STORAGE_CLIENT, JobsHub
from tests.hub.server import TOKEN
from tests.jobs.followed_run import FollowedRun
from tests.jobs.lab import SERVERS_OWN, Lab
from tests.waiting import PATIENCE_SECONDS

_wheel = functools.cache(build_wheel)  # of hundreds of files that no test changes


@contextmanager
def as_hugging_face(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsHub]:
    """Let huggingface_hub ask the stand-in, and store files with it as well, in this process."""
    monkeypatch.syspath_prepend(str(STORAGE_CLIENT))
    for name in [name for name in sys.modules if name.partition(".")[0] == "hf_xet"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    monkeypatch.setattr(job, "build_wheel", _wheel)
    # A step under way, which a test may not see the end of otherwise, is waited for however busy the machine is.
    monkeypatch.setattr(job.JobsExecutor, "close_seconds", PATIENCE_SECONDS)
    # In that module alone: what waits for other processes, and stand-ins that are slow on purpose, do sleep.
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
    with JobsHub(folder) as stand_in:
        stand_in.serve_all(monkeypatch, xet=True)
        yield stand_in
    sys.modules.pop("hf_xet", None)


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """Serve the stand-in."""
    with as_hugging_face(tmp_path / "jobs", monkeypatch) as stand_in:
        yield stand_in


@pytest.fixture
def api(hugging_face):
    return HfApi(endpoint=hugging_face.address, token=TOKEN)


@pytest.fixture
def home(tmp_path):
    own_home = LoratoryHome(tmp_path / "home")
    own_home.make_writable()
    return own_home


@pytest.fixture
def lab(hugging_face, home, monkeypatch):
    open_database(home).close()
    change_settings(home, limits={"free_disk_gb": 0})  # whatever this machine's disk has left
    monkeypatch.setenv("HF_TOKEN", SERVERS_OWN)
    return Lab(hugging_face, home)


@pytest.fixture
def followed_run(hugging_face, api, home):
    return FollowedRun(hugging_face, api, home)
