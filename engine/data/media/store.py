"""The media store: images of rows as files that this program wrote, by the digest of the bytes that the data had.

A file is named `ab/abcd…-640x480-a.jpg`: digest, size, letters of its notes. So an image that is stored is known without being opened.
"""

import base64
import hashlib
import io
import itertools
import os
import re
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.records import RowProblemError
from loratory.engine.errors import StorageError, explain_os_errors
from loratory.engine.files import write_atomically
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.limits import OVERRUN_EXIT_CODES
from loratory.engine.processes.messages import JsonObject, ProcessEndedError

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGE_BYTES = 64 << 20  # as the data has it
_DECODER = "loratory.engine.data.media.decode"
_DIGEST = re.compile(r"[0-9a-f]{64}")
STORED_NAME = re.compile(r"([0-9a-f]{64})-(\d+)x(\d+)(?:-([a-z]+))?\.(?:jpg|png)")
_MOST_PROBLEMS = 10_000


class MediaStore:
    """The images in one folder; each new one is decoded by a process with limits, which starts at the first."""

    def __init__(self, folder: Path, *, keeps_metadata: bool = False) -> None:
        self._folder = folder
        self._keeps_metadata = keeps_metadata  # of new images: EXIF, places and names in it too
        self._names: dict[str, dict[str, re.Match[str]]] = {}  # of files by digest, by the folder that they are in
        self._problems: dict[str, str] = {}  # of what cannot be decoded, by digest
        self._numbers = itertools.count()
        self._decoder = JsonLinesProcess(_DECODER, log_file=folder / "decoder.log")
        weakref.finalize(self, self._decoder.close, 0.0)

    def add(self, data: bytes) -> ImageRef:
        """Return an image, stored where it is new.

        Raises:
            RowProblemError: If it is not one, or takes too much; has the reason.
            StorageError: If it cannot be stored.
        """
        if not data:
            raise RowProblemError("image", "it is empty")
        if len(data) > MAX_IMAGE_BYTES:
            raise RowProblemError("image", f"it has {len(data) / 1e6:,.0f} MB; {MAX_IMAGE_BYTES >> 20} MiB is the most")
        digest = hashlib.sha256(data).hexdigest()
        name = self._files_in(digest[:2]).get(digest)
        if name is None:
            problem = self._problems.get(digest, "")
            name = STORED_NAME.fullmatch("" if problem else self._store(digest, data))
            if name is None:
                raise RowProblemError("image", problem or self._problems[digest])
            self._names[digest[:2]][digest] = name
        return ImageRef(digest, int(name[2]), int(name[3]))

    def find(self, digest: str) -> ImageRef | None:
        """Return the stored image whose source had this sha256; None where there is none."""
        name = self._lookup(digest)
        return ImageRef(digest, int(name[2]), int(name[3])) if name is not None else None

    def at_address(self, url: str) -> ImageRef | None:
        """Return the image that was fetched from an address; None where none was."""
        try:
            return self.find(self._address_file(url).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def note_address(self, url: str, ref: ImageRef) -> None:
        """Note from which address an image was fetched; raises StorageError."""
        write_atomically(self._address_file(url), ref.digest, makes_folder=True)

    def _address_file(self, url: str) -> Path:
        return self._folder / "addresses" / hashlib.sha256(url.encode(errors="replace")).hexdigest()

    def notes(self, ref: ImageRef) -> str:
        """Return the letters of the notes on a stored image, which `row_images.NOTES` has in words."""
        name = self._lookup(ref.digest)
        return (name[4] or "") if name is not None else ""

    def path(self, ref: ImageRef) -> Path:
        """Return the file of an image.

        Raises:
            StorageError: If it is not stored here.
        """
        name = self._lookup(ref.digest)
        if name is None:
            what = f"The image {ref.digest[:12]} is not in the media store {self._folder}."
            raise StorageError(what, "Read the dataset again, where its images are.")
        return self._folder / ref.digest[:2] / name[0]

    def open(self, ref: ImageRef) -> "Image.Image":
        """Return an image in RGB, decoded.

        Raises:
            StorageError: If it is not stored here, or its file is damaged.
        """
        from PIL import Image  # loaded where there are images

        path = self.path(ref)
        with (
            explain_os_errors(f"The stored image {path.name} cannot be read", "Delete it, and read the dataset again."),
            Image.open(path, formats=("JPEG", "PNG")) as image,
        ):
            return image.convert("RGB")

    def picture(self, ref: ImageRef, edge: int = 640) -> str:
        """Return an image as a data: URL, of at most so many pixels at an edge; raises as `open`."""
        image = self.open(ref)
        image.thumbnail((edge, edge))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=80)
        return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"

    def _lookup(self, digest: str) -> re.Match[str] | None:
        if _DIGEST.fullmatch(digest) is None:
            return None
        if digest not in self._files_in(digest[:2]):
            del self._names[digest[:2]]  # another process may have stored it since
        return self._files_in(digest[:2]).get(digest)

    def _files_in(self, part: str) -> dict[str, re.Match[str]]:
        """Return the files in one of the folders, as they were when it was listed."""
        if part not in self._names:
            folder = self._folder / part
            matches = [STORED_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
            self._names[part] = {match[1]: match for match in matches if match is not None}
        return self._names[part]

    def _store(self, digest: str, data: bytes) -> str:
        """Store a new image and return the name of its file; empty where it cannot be, with the reason in `_problems`."""
        source = self._folder / f".new-{os.getpid()}-{next(self._numbers)}"
        with explain_os_errors(
            "An image of the data cannot be stored", "Free some space, or check the home's permissions."
        ):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            source.write_bytes(data)
        target = self._folder / digest[:2] / digest
        request = {"source": str(source), "target": str(target), "keeps_metadata": self._keeps_metadata}
        try:
            answer = self._decode(request)
        finally:
            source.unlink(missing_ok=True)
        if "problem" in answer:
            if len(self._problems) >= _MOST_PROBLEMS:
                self._problems.clear()
            self._problems[digest] = answer["problem"]
        return str(answer.get("name", ""))

    def _decode(self, request: JsonObject) -> JsonObject:
        for _ in range(2):  # a decoder that ended once may have been ended from outside
            try:
                return self._decoder.call("store", request)
            except ProcessEndedError as end:
                if end.exit_code in OVERRUN_EXIT_CODES:
                    return {"problem": "decoding it takes too much time or memory"}
        return {"problem": "it makes the decoder crash"}
