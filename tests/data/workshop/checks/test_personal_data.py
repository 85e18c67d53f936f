"""Personal data and what looks like it."""

import pytest
from pydantic import ValidationError

from loratory.engine.data.workshop.checks.settings import CheckSettings
from tests.data.workshop.checks.reports import findings_of, talk


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to anna.meier+chat@uni-bonn.de.", "mail"),
        ("Call +49 30 901820 tomorrow", "phone"),
        ("Call +442079460958 tomorrow", "phone"),
        ("Call (202) 555-0147, please", "phone"),
        ("Call 030 901820 or so", "phone"),
        ("Call 01 42 68 53 00 today", "phone"),
        ("It is DE89 3704 0044 0532 0130 00.", "iban"),
        ("It is GB82WEST12345698765432", "iban"),
        ("Charge 4111 1111 1111 1111 twice", "card"),
        ("Charge 378282246310005 twice", "card"),
        ("The host is 8.8.8.8.", "ip"),
        ("The host is 2001:4860:4860:0:0:0:0:8888.", "ip"),
    ],
)
def test_personal_data_is_found(tmp_path, text, kind):
    assert findings_of(tmp_path, [talk("Hi", text)], "personal_data") == [(0, kind)]


@pytest.mark.parametrize(
    "text",
    [
        "Order 4823 5567 2210 came on 2019-04-12 at 10:30",
        "It costs 1,234,567.89, that is 21-17 and 18-21",
        "It is DE89 3704 0044 0532 0130 01.",
        "Charge 4111 1111 1111 1112 twice",
        "Version 10.0.22.1 and v8.8.8.8 at 192.168.1.20",
        "Write to user@example.com or me@home or @anna",
        "x = {a: 1234567890, b: [20, 30, 40]}; id 550e8400-e29b-41d4-a716-446655440000",
        "pi is 3.14159265358979, ISBN 978-3-16-148410-0",
        "",
    ],
)
def test_what_looks_like_personal_data_is_not_found(tmp_path, text):
    assert findings_of(tmp_path, [talk("Hi", text or "Hm.")], "personal_data") == []


def test_the_arguments_of_a_call_and_a_rejected_answer_are_searched(tmp_path):
    call = {"type": "function", "function": {"name": "send", "arguments": {"to": "bob@gmail.com"}}}
    turns = [{"role": "user", "content": "Send it."}, {"role": "assistant", "content": "", "tool_calls": [call]}]

    assert findings_of(tmp_path, [{"messages": turns}], "personal_data") == [(0, "mail")]
    assert findings_of(
        tmp_path, [{"prompt": "Who?", "chosen": "I.", "rejected": "bob@gmail.com"}], "personal_data"
    ) == [(0, "mail")]
    rating = {"prompt": "Who?", "completion": "bob@gmail.com", "label": False}
    assert findings_of(tmp_path, [rating], "personal_data") == [(0, "mail")]


def test_a_country_without_phone_numbers_is_refused_instead_of_finding_nothing():
    with pytest.raises(ValidationError, match="no phone numbers are known of UK, XX; give ISO codes"):
        CheckSettings(phone_regions="GB,XX,UK")
