"""Stop texts are found wherever the borders of tokens fall."""

import itertools

import pytest

from engine.serve.model import StopScanner


def scan(pieces, stops):
    scanner = StopScanner(stops)
    records = []
    for piece in pieces:
        scanned = scanner.add(piece)
        records.append(scanned.text)
        if scanned.stopped:
            return records, True
    records.append(scanner.finish())
    return records, False


def splits(text):
    """Every way to cut a text into pieces."""
    for cuts in itertools.product((False, True), repeat=len(text) - 1):
        pieces, start = [], 0
        for position, cut in enumerate(cuts, 1):
            if cut:
                pieces.append(text[start:position])
                start = position
        yield [*pieces, text[start:]]


@pytest.mark.parametrize(
    ("text", "stops", "kept", "stopped"),
    [
        ("one END two", ["END"], "one ", True),
        ("aabaab", ["aab"], "", True),
        ("aaab", ["aab"], "a", True),
        ("EN EN EN", ["END"], "EN EN EN", False),
        ("xyz", ["yz", "xy"], "", True),
        ("ab", ["abc"], "ab", False),
        ("no stops", [], "no stops", False),
    ],
)
def test_what_is_kept_does_not_depend_on_how_it_arrives(text, stops, kept, stopped):
    for pieces in splits(text):
        shown, ended = scan(pieces, stops)
        assert ("".join(shown), ended) == (kept, stopped), pieces


def test_text_without_a_beginning_of_a_stop_is_shown_at_once():
    scanner = StopScanner(["\n\n"])

    assert scanner.add("hello").text == "hello"
    assert scanner.add(" you\n").text == " you"
    assert scanner.add("!").text == "\n!"
