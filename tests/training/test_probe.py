"""What is tried before a run trains: rows that cross a tile of queries and a window, memory that runs out, NaN."""

from types import SimpleNamespace

import pytest
import torch

from loratory.engine.config.rules import QUERY_TILE
from loratory.engine.errors import ModelError
from loratory.engine.training.assembly import assemble
from loratory.engine.training.batching import choose, probe
from loratory.engine.training.ops import attention
from tests.tiny_model import make_tiny_model
from tests.training.tiny_training import ON_CPU, load_adapted, make_config, make_rows

WINDOW = 80  # more tokens than those whose loss is compared
GEMMA = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "num_hidden_layers": 3}
FAMILIES = {"llama": {}, "mistral": {"sliding_window": WINDOW}, "gemma3_text": GEMMA | {"sliding_window": WINDOW}}
ROWS = make_rows(6, longest=60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {
        family: make_tiny_model(root / family, model_type=family, max_position_embeddings=4096, **values)
        for family, values in FAMILIES.items()
    }


def assemble_model(folder, change=lambda _: None, **sections):
    """Assemble a run of rows up to 200 tokens on the processor; `change` gets the model before."""
    config = make_config(folder, **({"training": {"max_length": 200}} | sections))
    model, precision = load_adapted(config)
    change(model)
    return assemble(model, config, precision, ON_CPU, ROWS, 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_stay_apart_are_joined(folders, family, dtype):
    model_setup = assemble_model(folders[family], model={"compute_dtype": dtype})

    assert (model_setup.setup.settings.batching, model_setup.notes) == ("joined", ())


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_attention_that_forgets_a_window_beyond_the_first_tokens_is_noticed(folders, family, monkeypatch):
    own = attention.joined_attention
    monkeypatch.setattr(
        choose,
        "joined_attention",
        lambda *arguments, **keywords: own(*arguments, **keywords | {"sliding_window": None}),
    )

    model_setup = assemble_model(folders[family])

    assert model_setup.setup.settings.batching == "padded"
    assert "apart" in model_setup.notes[0]


def test_attention_that_errs_in_its_second_tile_is_noticed(folders, monkeypatch):
    monkeypatch.setattr(
        attention,
        "_tiles",
        lambda length, *_: [
            attention._Tile(s, min(s + QUERY_TILE, length), 0, s) for s in range(0, length, QUERY_TILE)
        ],
    )

    assert assemble_model(folders["llama"]).setup.settings.batching == "padded"
    assert (
        assemble_model(folders["llama"], training={"max_length": 100}).setup.settings.batching == "joined"
    )  # has no second tile


@pytest.mark.parametrize(
    ("window", "max_length", "device", "expected"),
    [
        (None, QUERY_TILE, "cpu", 0),
        (None, 2048, "cpu", QUERY_TILE + 32),
        (64, 100, "cpu", 96),
        (1024, 2048, "cpu", 1056),
        (4096, 8192, "cpu", QUERY_TILE + 32),  # would take longer than it is worth
        (4096, 8192, "cuda", 4128),
        (4096, 2048, "cuda", QUERY_TILE + 32),  # no row reaches it
    ],
)
def test_the_long_row_crosses_what_rows_of_the_run_cross(window, max_length, device, expected):
    config = SimpleNamespace(sliding_window=window)

    assert probe._crossing_length(config, max_length, torch.device(device)) == expected


def test_a_few_layers_are_tried_with_the_long_row(folders, monkeypatch):
    ran = []

    def count(model):
        for number, layer in enumerate(model.get_base_model().model.layers):
            layer.register_forward_hook(
                lambda _module, inputs, _output, number=number: ran.append((number, inputs[0].shape[1]))
            )

    assemble_model(folders["llama"], count)

    assert {number for number, _ in ran} == {0, 1}  # for the short rows
    assert {number for number, tokens in ran if tokens == QUERY_TILE + 32} == {0}


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory")]
)
def test_memory_that_runs_out_is_not_taken_for_attention_that_is_not_supported(folders, monkeypatch, error):
    def run_out(*_, **__):
        raise error

    monkeypatch.setattr(choose, "joined_attention", run_out)

    with pytest.raises(type(error), match="out of memory"):
        assemble_model(folders["llama"])


@pytest.mark.parametrize(("dtype", "advice"), [("bfloat16", "compute_dtype to float32"), ("float32", "another model")])
def test_a_loss_that_is_nan_from_the_start_is_reported_as_that(folders, dtype, advice):
    def spoil(model):
        next(model.parameters()).data.fill_(float("nan"))

    with pytest.raises(ModelError) as error_info:
        assemble_model(folders["llama"], spoil, model={"compute_dtype": dtype})

    assert "nan before any training" in error_info.value.what
    assert advice in error_info.value.fix
