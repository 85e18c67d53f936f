"""Languages and encodings of turns."""

import pytest

from loratory.engine.data.workshop.checks import text as checks
from tests.data.workshop.checks.reports import LONG, findings_of, talk

GERMAN = "Gestern bin ich mit meiner Schwester in die Berge gefahren, und es hat den ganzen Tag geregnet."
CHINESE = "昨天我和妹妹一起去山里玩，整整下了一天的雨，我们只好待在旅馆里看书聊天。"
ENGLISH = [
    talk(f"{LONG} Is that right?", f"Yes, that is how it works in most of the cases, {name}.")
    for name in ("Ann", "Bob")
]


@pytest.mark.parametrize(("text", "code"), [(GERMAN, "de"), (CHINESE, "zh")])
def test_a_turn_in_another_language_than_most_is_found(tmp_path, text, code):
    assert findings_of(tmp_path, [*ENGLISH, talk(text, LONG)], "language") == [(2, code)]


@pytest.mark.parametrize(
    "text",
    [
        "Ja, genau.",
        "",
        "def f(x):\n    return {key: value[0] for key, value in x.items() if value != {}}  # {}\n" * 2,
        "```\n" + GERMAN + "\n```",
        "12.5 | 13.7 | 99.1 | 1,234 | 5,678 | 9,012 | 3,456 | 7,890 | 1,234 | 5,678",
    ],
)
def test_short_turns_code_and_tables_get_no_language(tmp_path, text):
    assert findings_of(tmp_path, [*ENGLISH, talk("Well?", text or "Hm.")], "language") == []


def test_texts_that_are_identified_together_get_what_each_gets_alone():
    texts = [LONG, LONG.upper(), GERMAN, CHINESE, "Цена — 5 €", "cafe\u0301 " * 9, "a", "ꙮ" * 60, "", GERMAN * 40]
    expected = list(map(checks.load_languages().classify, texts))

    assert checks.identify(texts) == expected
    assert [pair for text in texts for pair in checks.identify([text])] == expected


def test_all_turns_get_a_language_however_they_are_batched(tmp_path, monkeypatch):
    rows = [*ENGLISH * 9, talk(GERMAN, LONG), *ENGLISH * 9, talk(LONG, CHINESE)]
    expected = [(18, "de"), (37, "zh")]
    assert findings_of(tmp_path, rows, "language") == expected
    monkeypatch.setattr(checks, "BATCH_CHARACTERS", 500)

    assert findings_of(tmp_path, rows, "language") == expected


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_that_was_read_as_something_else_is_found(tmp_path, encoding):
    text = "The crème brûlée in Málaga – déjà vu".encode().decode(encoding, "replace")

    assert ("encoding") in [kind for _, kind in findings_of(tmp_path, [{"text": text}], "mojibake")]


def test_a_lost_character_is_found(tmp_path):
    assert findings_of(tmp_path, [{"text": "caf\ufffd"}], "mojibake") == [(0, "lost")]


@pytest.mark.parametrize(
    "text", ["crème brûlée – “déjà vu”… 5 €", "今天天气很好", "ﬁne ｗｉｄｅ\r\nline", "plain", "naïve 😀 ÇA VA Ã"]
)
def test_correct_text_quotes_and_widths_are_not_found(tmp_path, text):
    assert findings_of(tmp_path, [{"text": text}], "mojibake") == []
