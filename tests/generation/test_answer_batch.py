"""Answers side by side: the likeliest ones are those of transformers, sampled ones follow the model's distribution."""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from loratory.engine.generation.worker import batch as batch_module
from loratory.engine.generation.worker.batch import AnswerBatch
from loratory.engine.generation.worker.sampling import Sampling
from loratory.engine.training.loops.rollouts import next_logits
from tests.tiny_model import make_tiny_model

PROMPTS = [[4 + (7 * row + 3 * index) % 250 for index in range(length)] for row, length in enumerate((30, 17, 17, 3))]
MOST = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With wide random weights and a head of its own, so answers wander instead of repeating a token."""
    folder = make_tiny_model(
        tmp_path_factory.mktemp("lively") / "tiny", tie_word_embeddings=False, initializer_range=0.4
    )
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def write(model, prompts=PROMPTS, most=MOST, end_ids=frozenset(), **options):
    cache = DynamicCache(config=model.config)
    batch = AnswerBatch(
        partial(next_logits, model), cache, model.device, prompts, [most] * len(prompts), end_ids, **options
    )
    while not batch.is_done:
        batch.advance()
    return batch.answers


def greedy(model, prompt, most=MOST):
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, min_new_tokens=most, do_sample=False,
        eos_token_id=None,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("piece", [7, 512])
def test_the_likeliest_answers_are_those_of_generate(model, piece, monkeypatch):
    monkeypatch.setattr(batch_module, "PIECE_TOKENS", piece)

    answers = write(model, copies=2)

    expected = [greedy(model, prompt) for prompt in PROMPTS for _ in range(2)]
    assert [answer.tokens for answer in answers] == expected


def test_answers_end_by_themselves_while_others_continue(model):
    whole = [greedy(model, prompt) for prompt in PROMPTS]
    ends = frozenset({whole[0][2], whole[1][5], whole[3][0]})

    answers = write(model, end_ids=ends)

    for answer, tokens in zip(answers, whole, strict=True):
        end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
        assert answer.tokens == tokens[:end]
        assert answer.end == (tokens[end] if end < len(tokens) else None)
    assert any(answer.end is None for answer in answers)


@pytest.mark.parametrize("sampling", [{"temperature": 1.0}, {"temperature": 0.6, "top_p": 0.7}], ids=str)
def test_sampled_tokens_follow_the_distribution_of_a_single_sequence(model, sampling):
    copies, prompt, longer = 4000, PROMPTS[1], PROMPTS[0]
    generator = torch.Generator().manual_seed(0)

    answers = write(model, [longer, prompt], 1, copies=copies, sampling=Sampling(**sampling, generator=generator))[
        copies:
    ]

    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double() / sampling["temperature"]
    log_probabilities = logits.log_softmax(-1)
    expected = log_probabilities.exp()
    order = expected.argsort(descending=True)
    before = expected[order].cumsum(0) - expected[order]
    expected[order[before >= sampling.get("top_p", 1.0)]] = 0
    expected /= expected.sum()
    counts = torch.bincount(torch.tensor([answer.tokens[0] for answer in answers]), minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0
    # Pearson's statistic over the tokens that come often; 5 standard deviations above its mean.
    often = expected * copies >= 5
    statistic = ((counts - expected * copies) ** 2 / (expected * copies))[often].sum()
    degrees = int(often.sum())
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5
    for answer in answers[:50]:
        assert answer.log_probabilities[0] == pytest.approx(float(log_probabilities[answer.tokens[0]]), abs=1e-4)
        assert answer.entropies[0] == pytest.approx(
            float(-(log_probabilities.exp() * log_probabilities).sum()), abs=1e-4
        )


def test_log_probabilities_are_those_of_the_whole_sequence(model):
    generator = torch.Generator().manual_seed(0)
    answers = write(model, copies=3, sampling=Sampling(1.0, 1.0, generator))

    for answer, prompt in zip(answers, [prompt for prompt in PROMPTS for _ in range(3)], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer.tokens]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(answer.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(answer.log_probabilities), expected, rtol=1e-3, atol=1e-3)


def test_the_same_seed_samples_the_same_answers(model):
    first, again, other = (
        [answer.tokens for answer in write(model, sampling=Sampling(1.0, 0.95, torch.Generator().manual_seed(seed)))]
        for seed in (3, 3, 4)
    )

    assert first == again != other


@pytest.mark.parametrize("vocabulary", [5, 256, 700])
def test_tokens_without_probability_are_never_drawn(vocabulary):
    logits = torch.full((64, vocabulary), -torch.inf)
    logits[:, vocabulary // 2] = 0.0
    sampling = Sampling(1.0, 1.0, torch.Generator().manual_seed(0))

    assert sampling.choose(logits).tokens.eq(vocabulary // 2).all()


def test_a_request_ends_answers_between_tokens(model):
    calls = []

    def between():
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, between=between)
    assert len(calls) == 5
