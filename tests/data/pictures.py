"""Pictures that the tests make."""

import base64
import io
import struct
import zlib

from PIL import Image


def picture(color="red", size=(40, 30), form="PNG", mode="RGB", **options):
    """Return the file of a picture of one color."""
    return file_of(Image.new(mode, size, color), form, **options)


def file_of(image, form="PNG", **options):
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def data_url(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def noise(size=(64, 48), mode="RGB"):
    """Return an image that hardly compresses."""
    grey = Image.effect_noise(size, 90)
    return Image.merge("RGB", [grey, grey.rotate(180), grey.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]).convert(mode)


def two_colors(size=(40, 30)):
    """Return an image that is red at the left and blue at the right."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image


def png_of_zeros(width, height):
    """Return a PNG of black pixels of any size: a thousandth of what it takes when it is decoded."""
    lines, packed = zlib.compressobj(1), b""
    for _ in range(height):
        packed += lines.compress(bytes(1 + 3 * width))
    return png_with(width, height, packed + lines.flush())


def png_with(width, height, packed):
    """Return a PNG that says it has this size, with such compressed data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
