"""Pictures of rows, and questions about data with sizes of images."""

from loratory.engine.data.contract import DatasetPage, ImageView, PageRow, SequenceView, TokenSpan
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef, Message
from loratory.engine.data.media.store import MediaStore
from loratory.engine.models.families.base import SmallerImage, Tiles
from loratory.ui.backend.dataset_checks import question_of
from loratory.ui.views.rows import render_row
from tests.data.pictures import picture

TURNS = (
    Message("user", f"{IMAGE_MARK}What <b>color?", images=(ImageRef("a" * 64, 640, 480),)),
    Message("assistant", "Red"),
)


def page_with(image, *sequences):
    row = PageRow(
        row=0, line=1, conversation=Conversation(TURNS), trained_turns=(1,), images=(image,), sequences=sequences
    )
    return DatasetPage(
        rows=(row,), first_row=0, total_rows=1, format="messages", format_reason="", format_sure=True, columns=(),
        column_map={},
    )  # fmt: skip


def span(text, tokens, **more):
    return TokenSpan(text=text, tokens=tokens, **{"trained": False, "special": False, **more})


def test_an_image_is_shown_with_its_tiles_its_tokens_and_what_a_smaller_one_takes():
    image = ImageView(
        width=640, height=480, picture="data:image/webp;base64,AA", tiles=Tiles(1024, 768, 2, 3, has_overview=True),
        smaller=SmallerImage(448 * 448, 64),
    )  # fmt: skip
    spans = (span("user\n", 13), span("", 224, image=0), span("What?", 3), span("Red", 1, trained=True))
    html = render_row(page_with(image, SequenceView(spans=spans, tokens=241, trained_tokens=1, uncut_tokens=241)), True)

    assert "640 × 480 pixels → 2 × 3 tiles and an overview · 224 tokens, 14–237" in html
    assert "At 448 px (max_pixels 200,704): 64 tokens instead of 224" in html
    assert "image 1: 224 image tokens" in html
    assert '<img src="data:image/webp;base64,AA" alt="Image 1 of the row">' in html
    assert "--rows:2;--columns:3" in html


def test_without_a_model_an_image_has_its_place_in_the_turn_and_no_tokens():
    html = render_row(page_with(ImageView(width=640, height=480, picture="data:image/webp;base64,AA")), True)

    assert '<span class="chip">▣ image 1</span>What &lt;b&gt;color?' in html
    assert "640 × 480 pixels." in html
    assert IMAGE_MARK not in html
    assert "image tokens" not in html


def test_questions_differ_by_sizes_of_images_and_not_by_what_is_trained():
    def question(**vision):
        return question_of({"dataset": {"source": "rows.jsonl"}, "model": {"id": "a"}, "vision": vision})

    assert question(max_pixels=10_000).vision.max_pixels == 10_000
    assert question(max_pixels=10_000).key != question().key
    assert not question(max_pixels=10_000).has_lengths_of(question())
    assert question(tower="full").key == question().key
    assert question(max_pixels=1).key == question().key  # invalid, which the panel shows


def test_the_process_sends_pictures_for_a_page(home):
    store = MediaStore(home.media)
    ref = store.add(picture("red", (1000, 500)))

    assert store.picture(ref).startswith("data:image/webp;base64,")
    assert len(store.picture(ref)) < 10_000
