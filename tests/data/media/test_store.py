"""The media store: what it takes, what it refuses and why, and what a hostile image costs."""

import contextlib
import io
import os
import time
import zlib
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from loratory.engine.data.conversation import ImageRef
from loratory.engine.data.media.store import MediaStore
from loratory.engine.data.records import RowProblemError
from loratory.engine.errors import StorageError
from tests.data.pictures import file_of, noise, picture, png_of_zeros, png_with, two_colors

SECONDS, BYTES = 10.0, 2 << 30
PLACE, TURNED, ARTIST = 0x8825, 0x0112, 0x013B


@pytest.fixture
def store(tmp_path):
    return MediaStore(tmp_path / "media")


def refusal(store, data):
    with pytest.raises(RowProblemError) as problem:
        store.add(data)
    assert problem.value.kind == "image"
    return problem.value.problem


def exif(**tags):
    data = Image.Exif()
    data[ARTIST] = "Ann Onymous"
    data.get_ifd(PLACE)[2] = (47.0, 22.0, 30.0)
    data[TURNED] = tags.get("orientation", 1)
    return data


def test_an_image_is_stored_once_by_the_digest_of_its_source(store, tmp_path):
    data = picture("red", (40, 30))

    ref = store.add(data)

    assert (ref.width, ref.height, len(ref.digest)) == (40, 30, 64)
    assert store.add(data) == ref
    assert store.open(ref).getpixel((3, 3)) == (255, 0, 0)
    assert store.path(ref).is_relative_to(tmp_path / "media")


def test_a_stored_image_is_not_decoded_again(store, tmp_path):
    ref = store.add(picture("red"))
    again = MediaStore(tmp_path / "media")

    assert again.add(picture("red")) == ref
    assert again._decoder.pid is None


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_pixels_are_those_that_pillow_reads_of_the_source(store, form):
    data = file_of(noise(), form)

    image = store.open(store.add(data))

    assert image.mode == "RGB"
    assert image.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize(("mode", "form"), [("L", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("P", "GIF")])
def test_grey_and_palettes_are_read_as_rgb(store, mode, form):
    data = file_of(noise(mode=mode), form)

    assert store.open(store.add(data)).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_sixteen_bits_become_eight(store):
    data = file_of(Image.new("I;16", (4, 4), 0x8000))

    assert store.open(store.add(data)).getpixel((0, 0)) == (128, 128, 128)


def test_what_is_transparent_is_white_with_a_note(store):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    ref = store.add(file_of(image))

    image = store.open(ref)

    assert (image.getpixel((0, 0)), image.getpixel((5, 5))) == ((0, 0, 255), (255, 255, 255))
    assert store.notes(ref) == "t"
    assert store.notes(store.add(picture("red", mode="RGBA"))) == ""


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_turns_an_image_and_is_not_stored(store, form, orientation):
    data = file_of(
        two_colors(), form, exif=exif(orientation=orientation), **({"lossless": True} if form == "WEBP" else {})
    )
    assert b"Ann" in data

    ref = store.add(data)

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = store.open(ref)
    assert (ref.width, ref.height) == image.size == expected.size == ((30, 40) if orientation in (6, 8) else (40, 30))
    corners = ((1, 1), (image.width - 2, image.height - 2))
    for corner in corners:
        pixels = zip(image.getpixel(corner), expected.getpixel(corner), strict=True)
        assert all(abs(left - right) < 12 for left, right in pixels)
    assert b"Ann" not in store.path(ref).read_bytes()
    with Image.open(store.path(ref)) as file:
        assert not file.getexif()


def test_metadata_is_kept_by_choice_and_turned_with_the_image(tmp_path):
    store = MediaStore(tmp_path, keeps_metadata=True)
    for orientation in (1, 6):
        ref = store.add(file_of(two_colors(), "JPEG", exif=exif(orientation=orientation)))
        with Image.open(store.path(ref)) as file:
            assert file.getexif()[ARTIST] == "Ann Onymous"
            assert file.getexif().get(TURNED, 1) == 1


def test_comments_profiles_and_what_follows_the_end_are_not_stored(store):
    jpeg = file_of(noise(), "JPEG", comment=b"secret comment", icc_profile=b"secret profile" * 20, progressive=True)
    plain = Image.open(io.BytesIO(file_of(noise())))
    text = PngInfo()
    text.add_text("Author", "secret author")
    for data in (jpeg, file_of(plain, pnginfo=text, icc_profile=b"secret profile" * 20)):
        ref = store.add(data + b"secret trailer <script>")
        assert b"secret" not in store.path(ref).read_bytes()
        assert store.open(ref).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_the_first_frame_of_an_animation_is_read_with_a_note(store):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "green", "blue")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        ref = store.add(file_of(frames[0], form, save_all=True, append_images=frames[1:]))
        assert store.notes(ref) == "a"
        assert store.open(ref).getpixel((5, 5))[0] > 240
    photo_with_preview = file_of(frames[0], "MPO", save_all=True, append_images=frames[1:2])
    assert store.notes(store.add(photo_with_preview)) == ""


def test_cmyk_is_read_as_rgb_with_a_note(store):
    data = file_of(Image.new("CMYK", (20, 10), (0, 255, 255, 0)), "JPEG")
    ref = store.add(data)

    assert store.notes(ref) == "c"
    assert store.open(ref).getpixel((5, 5)) == Image.open(io.BytesIO(data)).convert("RGB").getpixel((5, 5))


def bytes_changed(data, at, new):
    return data[:at] + new + data[at + len(new) :]


HOSTILE = {
    "nothing": (lambda: b"", "it is empty"),
    "a bomb of 900 million pixels": (lambda: png_with(30_000, 30_000, b""), "30,000 × 30,000 pixels"),
    "a bomb that can be decoded": (lambda: png_of_zeros(12_000, 12_000), "12,000 × 12,000 pixels"),
    "an edge of 50,000 pixels": (lambda: picture("red", (50_000, 2)), "50,000 × 2 pixels; 16,384 at an edge"),
    "a header of 2**31 pixels": (lambda: png_with(2**31 - 1, 1, b""), "2,147,483,647 × 1 pixels"),
    "a small PNG of much data": (lambda: png_with(64, 64, zlib.compress(bytes(200 << 20), 1)), None),
    "a PNG of nothing": (lambda: png_with(64, 64, b""), "damaged or cut off"),
    "a truncated PNG": (lambda: file_of(noise())[:-2000], "damaged or cut off"),
    "a truncated JPEG": (lambda: file_of(noise(), "JPEG")[:-900], "damaged or cut off"),
    "a truncated WebP": (lambda: file_of(noise(), "WEBP")[:-300], "not a JPEG, PNG|damaged or cut off"),
    "a header alone": (lambda: file_of(noise(), "JPEG")[:20], "not a JPEG, PNG|damaged or cut off"),
    "a broken PNG": (lambda: bytes_changed(file_of(noise()), 60, b"\0" * 500), "damaged or cut off"),
    "SVG": (lambda: b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "it is an SVG drawing"),
    "HTML": (lambda: b"\n<!DOCTYPE html><html><body>404</body></html>", "it is a web page"),
    "a PDF": (lambda: b"%PDF-1.7\n", "it is a PDF"),
    "PostScript, which would start a program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    "HEIC": (lambda: b"\0\0\0\x18ftypheic" + bytes(200), "it is HEIC"),
    "a pointer of Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "noise": (lambda: bytes(range(256)) * 40, "not a JPEG, PNG"),
    "pixels of 32 bits": (lambda: file_of(Image.new("F", (4, 4)), "TIFF"), "of the kind F"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_refused_with_its_reason(store, name):
    make, reasons = HOSTILE[name]
    if reasons is None:
        assert store.add(make()).width == 64  # only what the pixels need is decompressed
    else:
        assert any(reason in (came := refusal(store, make())) for reason in reasons.split("|")), came
    assert store.add(picture("green")).width == 40  # the next one is read


def peak_bytes(pid):
    """Return the peak of a process; 0 where it has ended, over its limit."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


LARGE = {
    "progressive JPEG, turned": lambda: file_of(
        Image.new("RGB", (8192, 8192), "red"), "JPEG", progressive=True, exif=exif(orientation=6)
    ),
    "transparent PNG": lambda: file_of(Image.new("RGBA", (8192, 8192), (1, 2, 3, 4)), compress_level=1),
    "AVIF": lambda: file_of(Image.new("RGB", (8192, 8192), "red"), "AVIF", speed=10),
    "much to compress": lambda: file_of(noise((4096, 4096), "RGB"), "WEBP", method=0),
    "an animation": lambda: file_of(
        Image.new("L", (4096, 4096), 1), "GIF", save_all=True,
        append_images=[Image.new("L", (4096, 4096), number) for number in range(2, 6)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.exhaustive
def test_the_largest_images_cost_their_process_and_no_more(store, name):
    """Each is answered within its seconds of computing, and below 2 GB."""
    data = LARGE[name]()
    store.add(picture("green"))  # the process is there
    decoder, began = store._decoder.pid, time.monotonic()

    with contextlib.suppress(RowProblemError):  # over the limit
        store.add(data)

    assert peak_bytes(decoder) < BYTES
    assert time.monotonic() - began < SECONDS * max(1.0, psutil.getloadavg()[0] / (os.cpu_count() or 1))
    assert store.add(picture("blue")).width == 40


@pytest.fixture
def dying_store(store, monkeypatch):
    monkeypatch.setattr("loratory.engine.data.media.store._DECODER", "tests.data.media.dying_decoder")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))  # where the decoder finds `tests`
    return MediaStore(store._folder)


def test_a_file_that_ends_its_decoder_is_refused_and_remembered(dying_store):
    assert refusal(dying_store, b"dies") == "it makes the decoder crash"
    assert refusal(dying_store, b"takes long") == "decoding it takes too much time or memory"
    assert refusal(dying_store, b"dies") == "it makes the decoder crash"
    assert dying_store._decoder.pid is None  # the second time, it was not asked
    assert not list(dying_store._folder.glob(".new-*"))


def test_an_image_whose_decoder_is_ended_from_outside_is_decoded_again(dying_store):
    assert refusal(dying_store, b"is ended") == "it is a text"


def test_an_image_that_is_not_stored_here_has_no_file(store):
    for digest in ("0" * 64, "../../etc/passwd", ""):
        with pytest.raises(StorageError):
            store.path(ImageRef(digest, 1, 1))


def test_each_person_of_a_lab_has_a_store_of_their_own(home):
    ann, bob = (home.for_person(name) for name in ("ann", "bob"))
    ref = MediaStore(ann.media).add(picture("red"))

    assert ann.media != bob.media
    assert MediaStore(bob.media).find(ref.digest) is None
