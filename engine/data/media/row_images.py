"""Find the images that rows name, have within or describe, and store them."""

import binascii
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from loratory.engine.config.run import ImageReading
from loratory.engine.data.conversation import ImageRef, RowWarning
from loratory.engine.data.files.access import DataAccess, open_regular, shown_name
from loratory.engine.data.media.fetch import fetch_image
from loratory.engine.data.media.store import MAX_IMAGE_BYTES, MediaStore
from loratory.engine.data.records import MEDIA_PREFIX, RowProblemError, describe_kind
from loratory.engine.errors import DatasetError
from loratory.engine.paths import LoratoryHome

MAX_IMAGES = 256  # of one row
DIGESTS = "image-digests.json"  # in the folder of a set: stored images by the names that rows have for them
NOTES = {
    "a": "has several frames or pages; only the first is read",
    "c": "is in CMYK, and is read as RGB without its color profile",
    "t": "is transparent in places, which are white in what is read",
}
_EMBEDDED = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Of what describes an image: the Hub's struct, OpenAI's and TRL's parts, and what transformers' templates take.
_SOURCE_FIELDS = ("bytes", "image", "image_url", "url", "path", "file_name", "base64", "data")


class RowImages:
    """Reads the images of one row after another."""

    def __init__(
        self,
        home: LoratoryHome | None,
        access: DataAccess,
        reading: Collection[ImageReading] = (),
        *,
        may_fetch: bool = False,
    ) -> None:
        self.home, self.access = home, access
        self._reading, self._may_fetch = reading, may_fetch
        self.folder_of: Callable[[int], Path | None] = lambda _: None  # the folder of a row's data file
        self.reads_files = False  # whether an image was in a file of its own, which may change
        self._row = self._count = 0  # of the row
        self.count = 0  # of all rows
        self.notes: tuple[RowWarning, ...] = ()  # on the images of the row
        self.digests: dict[str, str] = {}  # of the files that were read, by the names that rows have for them
        self._digests_in = lru_cache(_read_digests)

    @cached_property
    def store(self) -> MediaStore:
        folder = (self.home or LoratoryHome.locate()).media
        return MediaStore(folder, keeps_metadata="keep_metadata" in self._reading)

    def begin(self, row: int) -> None:
        """Begin another row, by its number."""
        self._row, self._count, self.notes = row, 0, ()

    def load(self, cell: Any) -> ImageRef:
        """Return the image that a cell or a part of a turn holds or names, stored.

        Raises:
            RowProblemError: If it cannot be read; has the number of the image and the reason.
        """
        self._count += 1
        self.count += 1
        require_few(self._count)
        try:
            ref = self._find(cell)
        except RowProblemError as problem:
            raise RowProblemError("image", f"image {self._count} cannot be read: {problem.problem}") from problem
        self.notes += tuple(("image", f"image {self._count} {NOTES[letter]}") for letter in self.store.notes(ref))
        return ref

    def _find(self, cell: Any) -> ImageRef:
        for _ in range(3):  # {"image_url": {"url": …}}
            if isinstance(cell, Mapping):
                cell = next((cell[name] for name in _SOURCE_FIELDS if cell.get(name) not in (None, "", b"")), None)
        if isinstance(cell, bytes):
            return self.store.add(cell)
        if not isinstance(cell, str):
            raise RowProblemError("image", f"it is {describe_kind(cell)}")
        if cell.startswith(MEDIA_PREFIX):
            ref = self.store.find(cell.removeprefix(MEDIA_PREFIX))
            if ref is None:
                raise RowProblemError("image", "the media store does not have it")
            return ref
        if (data := decode_url(cell)) is not None:
            return self.store.add(data)
        if _ADDRESS.match(cell):
            return self._fetch(cell)
        folder = self.folder_of(self._row)
        if folder is None:
            raise RowProblemError("image", f"{shown_name(cell)} is a file, and this dataset does not bring it")
        ref = self.store.find(self._digests_in(folder).get(cell, "")) or self.store.add(self._read_file(folder, cell))
        self.digests[cell] = ref.digest
        return ref

    def _fetch(self, url: str) -> ImageRef:
        if "fetch" not in self._reading:
            why = "is an address, and nothing is fetched from there; add fetch to dataset.images, or name a file"
            raise RowProblemError("image", f"{shown_name(url)} {why}")
        ref = self.store.at_address(url)
        if ref is None:
            if not self._may_fetch:
                raise RowProblemError("image", f"{shown_name(url)} was not fetched; check the dataset again")
            ref = self.store.add(fetch_image(url))
            self.store.note_address(url, ref)
        return ref

    def _read_file(self, folder: Path, name: str) -> bytes:
        self.reads_files = True
        try:
            path = self.access.resolve(str(folder / name))
            with open_regular(path) as file:
                return file.read(MAX_IMAGE_BYTES + 1)
        except (DatasetError, ValueError) as error:
            why = (
                str(getattr(error, "what", error)).replace(shown_name(str(folder / name)), shown_name(name)).rstrip(".")
            )
            raise RowProblemError("image", why) from error


def _read_digests(folder: Path) -> dict[str, str]:
    file = folder / DIGESTS
    return TypeAdapter(dict[str, str]).validate_json(file.read_bytes()) if file.is_file() else {}


def require_few(count: int) -> None:
    """Require that a row has no more images than are read; a RowProblemError has their number."""
    if count > MAX_IMAGES:
        raise RowProblemError("too_long", f"it has {count:,} images; {MAX_IMAGES:,} is the most")


def decode_url(cell: str) -> bytes | None:
    """Return the bytes in a data: URL; None where it is anything else.

    Raises:
        RowProblemError: If it is not in base64, or too large.
    """
    start = _EMBEDDED.match(cell)
    if start is None:
        return None
    if not start[0].lower().endswith(";base64,"):
        raise RowProblemError("image", "its data: URL is not in base64")
    if len(cell) > MAX_IMAGE_BYTES * 4 // 3 + 1000:
        raise RowProblemError("image", f"it has {len(cell) * 3 / 4e6:,.0f} MB; {MAX_IMAGE_BYTES >> 20} MiB is the most")
    try:
        return binascii.a2b_base64(cell[start.end() :])
    except ValueError as error:  # as of letters that are not ASCII
        raise RowProblemError("image", "its data: URL is not valid base64") from error
