"""Loratory as a wheel, built from this very installation: what a job, a Space or an image installs is what runs here."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

_PARTS = ("engine", "presets", "ui")
_ROOT = Path(__file__).parents[1]  # of the package: in the checkout or in site-packages
_ZIP_TIME = (2020, 1, 1, 0, 0, 0)  # the same content gives the same wheel


class Wheel(NamedTuple):
    """A wheel of this Loratory."""

    file_name: str  # as pip wants it
    number: str  # a hash of the content, so the same version is sent once
    content: bytes


def build_wheel() -> Wheel:
    """Return a wheel of this very Loratory, with the `loratory` command.

    Source: packaging.python.org/specifications/binary-distribution-format.
    """
    distribution = metadata.distribution("loratory")
    about = f"loratory-{distribution.version}.dist-info"
    files = {name: path.read_bytes() for name, path in _sources()}
    # A checkout on the path has an egg-info of the same text, which comes before what pip installed.
    metadata_text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    files[f"{about}/METADATA"] = metadata_text.encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: loratory\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/entry_points.txt"] = (distribution.read_text("entry_points.txt") or "").encode()
    digests = {
        n: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode() for n, data in files.items()
    }
    record = "".join(f"{name},sha256={digests[name]},{len(data)}\n" for name, data in files.items())
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data, zipfile.ZIP_DEFLATED)
    number = hashlib.sha256(record.encode()).hexdigest()[:12]
    return Wheel(f"loratory-{distribution.version}-py3-none-any.whl", number, wheel.getvalue())


def _sources() -> Iterator[tuple[str, Path]]:
    paths = [_ROOT / "__init__.py", _ROOT / "app.py"]
    for part in _PARTS:
        paths += sorted((_ROOT / part).rglob("*"))
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
            yield f"loratory/{path.relative_to(_ROOT).as_posix()}", path
