"""Make an image of the data into the one that is stored, in a process with limits: run as a module, this is that process.

Stored is what `PIL.Image.convert("RGB")` returns, turned as its EXIF says. A JPEG or PNG that needs no change keeps its compressed
pixels, and loses everything else: EXIF with places and names, thumbnails, comments, what follows the end.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from loratory.engine.data.records import one_line
from loratory.engine.files import write_atomically
from loratory.engine.processes.limits import lift_memory_limit, limited
from loratory.engine.processes.messages import JsonObject, Request, serve

# Plugins that start other programs, such as that of EPS, are not asked.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS, MAX_EDGE = 1 << 26, 1 << 14
# Of one image: seconds of computing, and bytes. Pillow has four bytes a pixel; a progressive JPEG takes six more.
DECODE_SECONDS, DECODE_BYTES = 5.0, 5 << 28
_ORIENTATION = 0x0112
_STARTS = (
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!doctype svg[^>]*>\s*)?<svg", re.DOTALL | re.IGNORECASE),
     "it is an SVG drawing, which has no pixels; export it as PNG"),
    (re.compile(rb"\s*<(!doctype html|html|head|body|\?xml)", re.IGNORECASE), "it is a web page or XML, not an image"),
    (re.compile(rb"....ftyp(hei|hev|mif)", re.DOTALL), "it is HEIC, which is not read; save it as JPEG"),
    (re.compile(rb"%PDF|%!PS"), "it is a PDF or PostScript document; save its pages as PNG"),
    (re.compile(rb"version https://git-lfs"), "it is a pointer of Git LFS; fetch the file that it means"),
)  # fmt: skip
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # within the pixels of a JPEG: what is neither data nor a restart
_PNG_SIGNATURE, _PNG_CHUNKS = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"IDAT", b"IEND")


class NotAnImageError(Exception):
    """What cannot be stored, with the reason."""


def to_stored(data: bytes, *, keeps_metadata: bool = False) -> tuple[bytes, str]:
    """Return the bytes to store, and the rest of their file's name: size in pixels, letters of `NOTES` in `row_images`, ending.

    Raises:
        NotAnImageError: With the reason.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        reasons = (why for start, why in _STARTS if start.match(data[:4096]))
        raise NotAnImageError(next(reasons, "it is not a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF image")) from None
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_EDGE:
        most = f"{MAX_EDGE:,} at an edge and {MAX_PIXELS / 1e6:.0f} million in all are the most"
        raise NotAnImageError(f"it has {width:,} × {height:,} pixels; {most}")
    notes = ""
    if image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO is a photo with its preview
        notes += "a"
    orientation = _orientation(image)
    is_plain = orientation == 1 and not notes and not image.has_transparency_data
    content = _without_metadata(image, data, keeps_metadata=keeps_metadata) if is_plain else None
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    if content is None:
        image.load()
        exif = image.getexif() if keeps_metadata else None
        image, notes = _to_rgb(ImageOps.exif_transpose(image) if orientation != 1 else image, notes)
        if exif is not None:
            exif.pop(_ORIENTATION, None)
        target = io.BytesIO()
        jpeg: Any = {"format": "JPEG", "quality": 95, "subsampling": 0}
        image.info.clear()  # PNG's writer takes text and profiles from there
        image.save(target, **(jpeg if is_jpeg else {"format": "PNG", "compress_level": 3}), exif=exif or b"")
        content, (width, height) = target.getvalue(), image.size
    return content, f"{width}x{height}{notes and f'-{notes}'}.{'jpg' if is_jpeg else 'png'}"


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # what is written wrong turns nothing
        return 1
    return value if value in range(1, 9) else 1


def _without_metadata(image: Image.Image, data: bytes, *, keeps_metadata: bool) -> bytes | None:
    """Return a JPEG or PNG that needs no change, once its pixels could be decoded; None for any other image."""
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        parts = _jpeg_parts(data)
    elif image.format == "PNG" and image.mode in ("RGB", "L", "P", "1"):
        parts = _png_parts(data)
    else:
        return None
    try:
        content = data if keeps_metadata else b"".join(parts)
        Image.open(io.BytesIO(content), formats=("JPEG", "PNG")).load()
    except (ValueError, IndexError, OSError, SyntaxError, struct.error):
        return None  # an unusual file, or a damaged one: the whole of it is decoded, which has the reason
    return content


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """Yield what the pixels of a JPEG need: all but comments and what applications added, up to its end."""
    yield data[:2]
    at = 2
    while True:
        while data[at] == data[at + 1] == 0xFF:
            at += 1
        marker, end = data[at + 1], at + 2
        if data[at] != 0xFF or marker == 0xD8:
            raise ValueError
        if marker == 0xD9:
            yield b"\xff\xd9"
            return
        end += int.from_bytes(data[end : end + 2])
        part = data[at:end]
        if marker == 0xE0 and part[4:9] == b"JFIF\0":
            yield b"\xff\xe0\x00\x10" + part[4:16] + b"\0\0"  # without a thumbnail
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or part[4:9] == b"Adobe":
            yield part
        at = end
        if marker == 0xDA:
            following = _MARKER.search(data, at)
            if following is None:
                raise ValueError
            yield data[at : following.start()]
            at = following.start()


def _png_parts(data: bytes) -> Iterator[bytes]:
    yield _PNG_SIGNATURE
    at, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise ValueError
        if kind in _PNG_CHUNKS:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):  # which Pillow passes over
                raise NotAnImageError("it is damaged or cut off: a checksum is wrong")
            yield data[at:end]
        at = end


def _to_rgb(image: Image.Image, notes: str) -> tuple[Image.Image, str]:
    """Return an image in RGB, or as it is in grey, with the notes on what it took."""
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("I", "F", "LAB", "HSV"):
        raise NotAnImageError(f"its pixels are of the kind {image.mode}; save it as PNG with 8 bits a channel")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        if clear.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(clear)
            clear, notes = white, f"{notes}t"
        return clear.convert("RGB"), notes
    if image.mode == "CMYK":
        notes += "c"
    return (image if image.mode == "L" else image.convert("RGB")), notes


Image.init()  # imports the plugins
Image.MAX_IMAGE_PIXELS = None  # each image is measured before it is decoded


def _store(params: JsonObject, _: Request) -> JsonObject:
    lift_memory_limit()
    try:
        with limited(DECODE_SECONDS, DECODE_BYTES):
            content, name = to_stored(Path(params["source"]).read_bytes(), keeps_metadata=params["keeps_metadata"])
    except NotAnImageError as error:
        return {"problem": str(error)}
    except MemoryError:
        return {"problem": f"decoding it takes more than {DECODE_BYTES >> 20:,} MiB"}
    except Exception as error:  # whatever a damaged file makes a decoder raise
        return {"problem": f"it is damaged or cut off: {one_line(str(error) or type(error).__name__, 100)}"}
    path = Path(f"{params['target']}-{name}")
    write_atomically(path, content, makes_folder=True)
    return {"name": path.name}


if __name__ == "__main__":
    serve({"store": _store})
