"""A merged model is the run's own also where the base is unusual: tied weights, strange settings for generation."""

import json

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.chat.tiny_adapters import lora
from tests.export.exporting import export, write_run
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.usefixtures("few_questions")


@pytest.mark.parametrize(
    "changes",
    [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}],
)
def test_a_tied_base_of_which_one_side_was_trained_is_merged_as_two(home, tmp_path, changes):
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=True, initializer_range=0.4)
    run = write_run(tmp_path / "run", base, lora(**changes))

    result = export(home, run, tmp_path / "out", kind="merged", dtype="float32")

    assert result.verified.passed, result.verified
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is not model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "top_p": 0.6},  # sampling that is not switched on, as in Llama 2
        {"do_sample": False, "top_k": 5},
        {"num_beams": 1, "early_stopping": True},
    ],
)
def test_settings_for_generation_that_transformers_would_not_write_are_taken_along(home, tmp_path, settings):
    base = make_tiny_model(tmp_path / "base", tie_word_embeddings=False, initializer_range=0.4)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, **settings}))
    run = write_run(tmp_path / "run", base, lora())

    export(home, run, tmp_path / "out", kind="merged", verify=False)

    content = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings.items() <= content.items()
    assert 3 in content["eos_token_id"]
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == content["eos_token_id"]
