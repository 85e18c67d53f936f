"""Images in requests: data: URLs alone, stored in a folder of their own, refused with the reason."""

import base64
import io

import openai
import pytest
from openai import OpenAI
from PIL import Image

from loratory.engine.data.conversation import IMAGE_MARK
from loratory.engine.data.media.store import MediaStore
from loratory.engine.serve.endpoint import MAX_BODY_BYTES
from loratory.engine.serve.model import ServedModel
from tests.serve.running import TARGET, ScriptedSession, listening, send


def data_url(width=12, height=8) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


@pytest.fixture
def session() -> ScriptedSession:
    session = ScriptedSession()
    session.takes_images = True
    return session


@pytest.fixture
def store(tmp_path) -> MediaStore:
    return MediaStore(tmp_path / "media")


@pytest.fixture
def url(session, store):
    with listening(ServedModel(session, TARGET, "my-run", images=store)) as address:
        yield address


@pytest.fixture
def client(url) -> OpenAI:
    return OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=300)


def request(client, *parts):
    return client.chat.completions.create(model="my-run", messages=[{"role": "user", "content": list(parts)}])


def test_parts_become_a_turn_with_its_images(client, session, store):
    request(client, {"type": "text", "text": f"Which{IMAGE_MARK} is red: "}, image(data_url()), image(data_url(20, 9)))

    (message,) = session.requests[0].messages
    assert message.content == f"Which is red: {IMAGE_MARK}{IMAGE_MARK}"
    assert [(ref.width, ref.height) for ref in message.images] == [(12, 8), (20, 9)]
    assert store.open(message.images[0]).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("https://example.org/cat.png", "nothing is fetched from an address"),
        ("http://127.0.0.1:1/cat.png", "nothing is fetched from an address"),
        ("file:///etc/passwd", "nothing is fetched from an address"),
        ("/etc/passwd", "its url is not a data: URL"),
        ("media:" + "ab" * 32, "its url is not a data: URL"),
        ("data:image/png;base64,PGh0bWw+", "not an image"),
        ("data:image/png,abc", "is not in base64"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused(client, session, address, reason):
    with pytest.raises(openai.BadRequestError, match="An image cannot be read: ") as error_info:
        request(client, image(address))

    assert reason in error_info.value.message
    assert (error_info.value.code, error_info.value.param) == ("invalid_image", "messages")
    assert not session.requests


def test_too_many_images_are_refused_before_any_is_read(client, store):
    with pytest.raises(openai.BadRequestError, match="The messages have 257 images; 256 is the most"):
        request(client, *[image(data_url())] * 257)
    assert not store._folder.exists()


def test_a_text_model_refuses_images_and_large_bodies(session, store):
    session.takes_images = False
    with listening(ServedModel(session, TARGET, "my-run", images=store)) as address:
        client = OpenAI(base_url=address, api_key="unused", max_retries=0, timeout=300)
        with pytest.raises(openai.BadRequestError, match="my-run takes text only, and a message has an image"):
            request(client, image(data_url()))
        host = address.removeprefix("http://").removesuffix("/v1")
        body = b"{" + b" " * MAX_BODY_BYTES
        status, text, _ = send(host, "POST", "/v1/chat/completions", body, content_type="application/json")
    assert (status, "The body is larger than 8 MB." in text) == (413, True)
    assert not store._folder.exists()


def test_a_body_with_images_may_be_larger(client, session):
    request(client, {"type": "text", "text": "a" * MAX_BODY_BYTES}, image(data_url()))

    assert len(session.requests[0].messages[0].content) > MAX_BODY_BYTES
