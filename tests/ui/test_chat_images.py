"""Images in questions of the chat: added, shown, removed, sent, refused, saved and opened again."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message
from loratory.engine.data.media.store import MediaStore
from loratory.engine.errors import ModelError, StorageError
from loratory.ui.backend.conversation import Turn, as_markdown, messages_of, question_message, read_conversation
from loratory.ui.tabs.chat import ChatTab
from tests.ui.changes import Changes
from tests.ui.test_chat_tab import act, pick, send


def png(color="red", size=(40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def tab(laid_out, services) -> ChatTab:
    services.chat._pace = 0.0005
    services.chat.takes_images = True
    tab = laid_out(ChatTab)
    load(tab, services)
    return tab


def load(tab, services):
    from loratory.engine.chat.contract import ChatTarget
    from loratory.engine.config.run import ModelConfig

    services.chat.load(ChatTarget.of_model(ModelConfig(id="a-model")))


def upload(services, name, data) -> str:
    path = services.home.transfers / "some-hash" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_images_are_sent_with_the_question_and_shown_in_its_turn(tab, services):
    first = Changes(tab.talk, tab.talk.open_file([upload(services, "a.png", png())]))
    both = Changes(tab.talk, tab.talk.open_file([upload(services, "b.jpg", png("blue", (20, 50)))], first.row))
    assert both.suggestions.count('<img src="data:image/webp;base64,') == 2
    assert 'alt="Image 2, 20 × 50 pixels"' in both.suggestions
    removed = Changes(tab.talk, tab.talk.take_suggestion(pick("remove:0"), [], both.row))
    assert removed.suggestions.count("<img") == 1
    assert [image.width for image in removed.row.images] == [20]

    last = send(tab, "Which is red?", row=both.row)[-1]

    (message,) = services.chat.requests[-1].messages
    assert message == Message("user", f"{IMAGE_MARK}{IMAGE_MARK}Which is red?", images=both.row.images)
    assert last.transcript.count("<img ") == 2
    assert 'data-pick="vote:' not in last.transcript  # a vote has text alone
    (turn,) = last.turns
    again = act(tab, "edit:0", last.turns)
    assert (again.question, again.row.images) == ("Which is red?", turn.images)
    send(tab, "And now?", turns=[])
    assert services.chat.requests[-1].messages == (Message("user", "And now?"),)


def test_a_saved_conversation_keeps_the_digests_and_opens_again(tab, services):
    row = Changes(tab.talk, tab.talk.open_file([upload(services, "a.png", png())])).row
    last = send(tab, "What is it?", row=row)[-1]
    saved = read_conversation(last.browser_copy.encode())
    (ref,) = saved.turns[0].images

    assert f"- Image {ref.digest}, 40 × 30 pixels" in as_markdown(saved)
    opened = Changes(tab.talk, tab.talk.open_file([upload(services, "c.json", last.browser_copy.encode())]))
    assert opened.turns == last.turns
    assert "<img " in opened.transcript
    MediaStore(services.home.media).path(ref).unlink()
    other = json.loads(last.browser_copy)
    other["turns"][0]["images"][0]["digest"] = "../../etc/passwd"
    opened = Changes(tab.talk, tab.talk.open_file([upload(services, "c.json", json.dumps(other).encode())]))
    assert "not in the media store" in opened.transcript
    assert "<img" not in opened.transcript


def test_what_cannot_be_an_image_here_gives_its_reason(tab, services, tmp_path):
    with pytest.raises(ModelError, match=r"page.png cannot be read: it is a web page or XML, not an image"):
        tab.talk.open_file([upload(services, "page.png", b"<html><body>")])
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(png())
    link = Path(upload(services, "link.png", b""))
    link.unlink()
    link.symlink_to(elsewhere)
    for path in (elsewhere, link, Path("/etc/hostname")):
        with pytest.raises(StorageError, match="was not uploaded here"):
            tab.talk.open_file([str(path)])
    with pytest.raises(ModelError, match="at most 256 images"):
        tab.talk.open_file([upload(services, "a.png", png())] * 257)


def test_a_text_model_offers_and_takes_no_image(tab, services):
    assert "add-picture" in tab.talk.render_suggestions([], None)
    services.chat.unload()
    services.chat.takes_images = False
    load(tab, services)

    assert "add-picture" not in tab.talk.render_suggestions([], None)
    with pytest.raises(ModelError, match="a-model takes text only"):
        tab.talk.open_file([upload(services, "a.png", png())])


def test_images_of_a_row_stay_where_the_row_has_them():
    refs = (ImageRef("ab" * 32, 4, 4),)
    with_mark = f"Look: {IMAGE_MARK}\nWhat is it?"

    assert question_message(with_mark, refs).content == with_mark
    assert question_message("What?", refs).content == f"{IMAGE_MARK}What?"
    assert question_message(with_mark, ()).content == "Look: \nWhat is it?"
    assert messages_of([Turn(with_mark, images=refs)], "base", "") == (Message("user", with_mark, images=refs),)
    assert Conversation(messages_of([Turn(with_mark, images=refs)], "base", "")).has_marks()
