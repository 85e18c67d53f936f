"""The definitions stay what they are: chrF with sacrebleu's defaults, ROUGE-L on words of any script."""

import pytest

from engine.evaluation.worker.scores import chrf, mean_scores, rouge_l, score_answer

KNOWN = [
    ("The rank of an adapter is a small number.", "A rank is the small number of an adapter.", 0.6512183350, 0.4444444),
    ("lora_alpha scales the update.", "The update is scaled by lora_alpha / r.", 0.5495533561, 0.3076923),
    ("abc", "abc", 1.0, 1.0),
    ("", "reference", 0.0, 0.0),
    ("völlig anders", "Grüße aus Köln, schöne Grüße", 0.0621043277, 0.0),
    ("yes", "no", 0.0, 0.0),
]


@pytest.mark.parametrize(("answer", "reference", "expected_chrf", "expected_rouge"), KNOWN)
def test_known_pairs(answer, reference, expected_chrf, expected_rouge):
    assert chrf(answer, reference) == pytest.approx(expected_chrf, abs=1e-6)
    assert rouge_l(answer, reference) == pytest.approx(expected_rouge, abs=1e-6)


def test_words_of_any_script_count():
    assert rouge_l("こんにちは 世界", "世界 こんにちは") == pytest.approx(0.5)
    assert rouge_l("Ранг МАЛ.", "ранг мал") == 1.0


def test_exact_means_the_same_but_for_white_space():
    assert score_answer(" a\n b ", "a b").exact
    assert not score_answer("a B", "a b").exact


def test_means_are_over_rows():
    mean = mean_scores([score_answer("abc", "abc"), score_answer("yes", "no")])

    assert (mean.exact, mean.chrf, mean.rouge_l, mean.rows) == (0.5, 0.5, 0.5, 2)
