"""The catalogue: complete, searchable, and of one mind with what transformers builds."""

import json

import pytest

from loratory.engine.models.catalog import (
    find_in_catalog,
    is_causal_lm,
    is_known_model_type,
    list_catalog,
    search_catalog,
)
from loratory.engine.models.source import is_hub_id


def test_the_demo_model_comes_first_and_ids_are_unique():
    ids = [entry.id for entry in list_catalog()]

    assert ids[0] == "smollm2-135m-instruct"
    assert len(set(ids)) == len(ids) == 60


def test_every_entry_can_be_built_and_fetched():
    for entry in list_catalog():
        assert is_causal_lm(str(entry.config["model_type"])), entry.id
        assert is_hub_id(entry.hub_id), entry.id
        assert entry.context_length, entry.id
        assert entry.about.endswith("."), entry.id
        assert "\n" not in entry.about, entry.id


def test_published_configurations_and_counts_are_in_the_catalogue(shared_folder):
    published = json.loads((shared_folder / "reference" / "model_configs.json").read_text())

    for hub_id, facts in published.items():
        entry = find_in_catalog(hub_id)
        assert entry is not None, hub_id
        assert entry.parameters == facts["num_parameters"], hub_id
        assert entry.config == facts["config"], hub_id


def test_names_are_found_regardless_of_their_case():
    assert find_in_catalog(" qwen/QWEN3-8b ").id == "Qwen/Qwen3-8B"
    assert find_in_catalog("qwen3-8b") is None


@pytest.mark.parametrize(
    ("query", "first", "count"),
    [
        ("", "smollm2-135m-instruct", 60),
        ("Qwen3 0.6B", "Qwen/Qwen3-0.6B", 1),
        ("llama2", "meta-llama/Llama-2-7b-hf", 3),  # by licence
        ("128 mixture", "google/gemma-4-26B-A4B-it", 3),  # by description
        ("no such words", None, 0),
    ],
)
def test_a_search_needs_every_word(query, first, count):
    entries = search_catalog(query)

    assert len(entries) == count
    assert (entries[0].id if entries else None) == first


def test_names_come_before_mentions():
    entries = [entry.id for entry in search_catalog("llama 2")]

    assert entries[0] == "meta-llama/Llama-2-7b-hf"
    assert entries.index("meta-llama/Llama-2-70b-hf") < entries.index("meta-llama/Llama-3.2-1B-Instruct")
    assert entries.index("meta-llama/Llama-3.2-3B-Instruct") < entries.index("TinyLlama/TinyLlama-1.1B-Chat-v1.0")


def test_architectures_are_those_that_transformers_has():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) > 100
    assert all(is_causal_lm(model_type) for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert all(is_known_model_type(model_type) for model_type in CONFIG_MAPPING_NAMES)
    assert is_known_model_type("vit")
    assert not is_causal_lm("vit")
    assert not is_known_model_type("own_thing")


def test_untrainable_models_are_reported_before_anything_is_fetched():
    assert find_in_catalog("Qwen/Qwen3-30B-A3B").notes == ("Experts get no adapter and stay in 16 bits.",)
    (note,) = find_in_catalog("openai/gpt-oss-20b").notes
    assert note.startswith("Cannot be trained as published. Its experts are published in MXFP4")
    assert find_in_catalog("unsloth/gpt-oss-20b-BF16").untrainable == ""
    assert find_in_catalog("Qwen/Qwen3-4B").notes == ()
    titles = [entry.title for entry in list_catalog()]
    assert len(set(titles)) == len(titles)
    assert titles[0].startswith("Demo: ")
    assert "from the Hub" in titles[1]
