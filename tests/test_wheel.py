"""The wheel that jobs, Spaces and images install."""

import subprocess
import sys
import zipfile
from io import BytesIO

import pytest

from loratory.engine.wheel import build_wheel


@pytest.fixture(scope="module")
def wheel():
    return build_wheel()


def test_it_is_the_same_each_time_and_whole(wheel):
    assert wheel == build_wheel()
    archive = zipfile.ZipFile(BytesIO(wheel.content))
    names = archive.namelist()
    assert {
        f"loratory/{name}"
        for name in ("app.py", "engine/training/worker.py", "presets/quickstart-cpu.yaml", "engine/models/catalog.json")
    } <= set(names)
    record = archive.read(next(name for name in names if name.endswith("/RECORD"))).decode()
    assert {line.rpartition(",")[0].rpartition(",")[0] for line in record.splitlines()} == set(names)
    assert not any("__pycache__" in name for name in names)


def test_it_is_as_whole_where_a_checkout_is_found_before_what_pip_installed(wheel, tmp_path, monkeypatch):
    archive = zipfile.ZipFile(BytesIO(wheel.content))
    egg_info = tmp_path / "loratory.egg-info"
    egg_info.mkdir()
    for ending, file_name in (("METADATA", "PKG-INFO"), ("entry_points.txt", "entry_points.txt")):
        (egg_info / file_name).write_bytes(
            archive.read(next(name for name in archive.namelist() if name.endswith(ending)))
        )
    monkeypatch.syspath_prepend(tmp_path)

    assert b"Name: loratory" in (egg_info / "PKG-INFO").read_bytes()
    assert build_wheel() == wheel


@pytest.mark.exhaustive(quick=0)
def test_it_brings_the_command(wheel, tmp_path):
    file = tmp_path / wheel.file_name
    file.write_bytes(wheel.content)

    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(file)], check=True)

    command = (tmp_path / "site" / "bin" / "loratory").read_text()
    assert "from loratory.engine.cli import main" in command
