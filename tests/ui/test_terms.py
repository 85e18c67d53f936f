"""The terms that the page explains; `tests/browser/test_what_is_shown.py` reads their sentences in a browser."""

import re

from loratory.ui.components import script

_LINE = re.compile(r"^  ('?)([\w-][\w -]*)\1: '([^']+)',$", re.MULTILINE)


def test_each_term_has_one_short_sentence_that_does_not_need_the_term_itself():
    terms = {term: sentence for _, term, sentence in _LINE.findall(script("terms"))}

    assert len(terms) > 30
    assert {"PEFT", "held-out", "logit", "chrF", "perplexity", "forward pass"} <= terms.keys()
    for term, sentence in terms.items():
        assert sentence.endswith(".")
        assert ". " not in sentence
        assert term not in sentence
        assert len(sentence) < 130
