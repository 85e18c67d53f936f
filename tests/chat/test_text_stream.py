"""Text comes in whole characters, and nothing of it is lost."""

import pytest

from loratory.engine.chat.worker.answer import TextStream
from tests.tiny_model import make_tiny_tokenizer

TEXTS = [
    "The rank of an adapter is a number.",
    "  two spaces,\n\na line, and\ttabs  ",
    "Grüße, 日本語, हिन्दी and 👩‍🔬🏳️‍🌈 together",
    "a literal \ufffd in the middle",
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_whole_text(tokenizer, text):
    stream = TextStream(tokenizer)

    pieces = [stream.add(token) for token in tokenizer(text)["input_ids"]]

    assert "".join(pieces) + stream.finish() == text


def test_a_character_of_several_tokens_is_never_shown_by_halves(tokenizer):
    stream = TextStream(tokenizer)
    tokens = tokenizer("👍")["input_ids"]
    assert len(tokens) == 4

    pieces = [stream.add(token) for token in tokens]

    assert pieces == ["", "", "", "👍"]


def test_what_ends_in_half_a_character_is_shown_as_the_decoder_shows_it(tokenizer):
    tokens = tokenizer("ok 👍")["input_ids"][:-1]
    stream = TextStream(tokenizer)

    text = "".join(stream.add(token) for token in tokens) + stream.finish()

    assert text == tokenizer.decode(tokens)
    assert text.startswith("ok ")


def test_special_tokens_are_not_text(tokenizer):
    stream = TextStream(tokenizer)
    tokens = [*tokenizer("yes")["input_ids"], tokenizer.eos_token_id, *tokenizer(" no")["input_ids"]]

    assert "".join(stream.add(token) for token in tokens) + stream.finish() == "yes no"


def test_a_tokenizer_that_writes_its_spaces_before_words_keeps_them():
    class SpaceBeforeWords:
        """As SentencePiece: the space belongs to the word, and is dropped where the decoding begins."""

        def decode(self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
            texts = {1: " low", 2: " rank", 3: "s"}
            return "".join(texts[token] for token in token_ids).removeprefix(" ")

    stream = TextStream(SpaceBeforeWords())

    assert [stream.add(token) for token in (1, 2, 3, 1)] == ["low", " rank", "s", " low"]
