"""What is advised does fit, costs no more than it must, and can be applied; limits are the limits."""

from dataclasses import replace

import pytest

from loratory.engine.config.load import config_from_mapping, with_overrides
from loratory.engine.errors import ConfigError, MemoryUnknownError, ModelError
from loratory.engine.hardware.device import Device
from loratory.engine.inspector.worker.inventory import inventory_of
from loratory.engine.memory.advice import advise
from loratory.engine.memory.compare import compare_methods, largest_that_fits, recommend, share_among
from loratory.engine.memory.estimate import Estimator, estimate_memory
from loratory.engine.models.catalog import find_in_catalog

GIB = 2**30
QWEN = "Qwen/Qwen3-4B"


def gpu(gib: float) -> Device:
    size = int(gib * GIB)
    return Device("cuda", 0, f"a GPU with {gib} GiB", size, size, has_fast_bfloat16=True)


def mapping(**sections):
    return {"model": {"id": QWEN}, "dataset": {"source": "-"}} | sections


@pytest.fixture(scope="module")
def shape():
    return inventory_of(find_in_catalog(QWEN).config)


@pytest.mark.parametrize("gib", [6, 12, 24])
def test_a_change_that_is_said_to_fit_does_when_it_is_applied(shape, gib):
    plain = mapping(training={"per_device_train_batch_size": 4, "max_length": 2048})

    advice = advise(shape, config_from_mapping(plain), gpu(gib))

    for change in advice.changes:
        config = config_from_mapping(with_overrides(plain, change.overrides))
        again = estimate_memory(shape, config, gpu(gib))
        assert again.needed_bytes == change.needed_bytes
        assert again.verdict == change.verdict


@pytest.mark.parametrize(("device", "cost"), [("cpu", "slower on this processor"), ("cuda", "faster")])
def test_bfloat16_is_advised_where_float32_is_computed_in(shape, device, cost):
    """Processors whose bfloat16 is slow take float32 by themselves, GPUs where a person asks for it."""
    size = 20 * GIB
    where = Device(device, 0, "it", size, size, has_fast_bfloat16=device == "cuda", cores=8)
    model = {"id": QWEN} | ({"compute_dtype": "float32"} if device == "cuda" else {})

    alone = ("model.compute_dtype=bfloat16",)
    changes = advise(shape, config_from_mapping(mapping(model=model)), where).changes
    (change,) = (c for c in changes if c.overrides == alone)
    assert change.cost.startswith(cost)
    need = estimate_memory(shape, config_from_mapping(mapping(model=model)), where).needed_bytes
    assert change.needed_bytes < 0.7 * need

    half_precision = mapping(model={"id": QWEN, "compute_dtype": "bfloat16"})
    assert not [c for c in advise(shape, config_from_mapping(half_precision), where).changes if "bfloat16" in c.change]


def test_the_combination_leaves_out_what_is_not_needed(shape):
    plain = mapping(training={"per_device_train_batch_size": 4, "max_length": 4096})
    device = gpu(8)
    advice = advise(shape, config_from_mapping(plain), device)
    combination = max((c for c in advice.changes if c.verdict == "fits"), key=lambda c: len(c.overrides))

    assert len(combination.overrides) > 1
    parts = [c for c in advice.changes if set(c.overrides) < set(combination.overrides)]
    for part in parts:
        fewer = [o for o in combination.overrides if o not in part.overrides]
        config = config_from_mapping(with_overrides(plain, fewer))
        assert estimate_memory(shape, config, device).verdict != "fits", f"{part.change} is not needed"


@pytest.mark.parametrize("gib", [20, 30, 60])
def test_the_limits_fit_and_a_little_more_does_not(shape, gib):
    config = config_from_mapping(mapping(model={"id": QWEN, "quantization": "nf4"}))
    device = gpu(gib)
    advice = advise(shape, config, device)

    for field, value in (
        ("max_length", advice.longest_max_length),
        ("per_device_train_batch_size", advice.largest_batch_size),
    ):

        def need(number, field=field):
            other = config_from_mapping(mapping(model={"id": QWEN, "quantization": "nf4"}, training={field: number}))
            return Estimator(shape, device).need(other).needed_bytes

        assert need(value) <= device.free_bytes
        if field == "per_device_train_batch_size" or value < shape.max_position_embeddings:
            assert need(value + 2 + value // 100) > device.free_bytes


def test_where_nothing_fits_there_are_no_limits(shape):
    advice = advise(shape, config_from_mapping(mapping()), gpu(1))

    assert advice.longest_max_length is None
    assert advice.largest_batch_size is None
    assert all(change.verdict != "fits" for change in advice.changes)


def test_where_it_fits_what_is_advised_makes_it_faster_or_more_exact(shape):
    config = config_from_mapping(
        mapping(model={"id": QWEN, "quantization": "nf4"}, training={"gradient_checkpointing": True})
    )

    advice = advise(shape, config, gpu(80))

    assert [change.overrides for change in advice.changes][:2] == [
        ("training.gradient_checkpointing=false",),
        ("model.quantization=none",),
    ]
    assert {change.verdict for change in advice.changes} == {"fits"}


@pytest.mark.parametrize(("limit", "answer"), [(0, None), (99, None), (100, 1), (12_345, 123), (10**9, 5_000)])
def test_the_largest_value_is_found_of_a_need_that_grows(limit, answer):
    result = largest_that_fits(lambda value: 100 * value, limit, start=700, upper=5_000)

    assert result == answer or (
        result is not None and answer is not None and answer * 127 / 128 - 1 <= result <= answer
    )


def test_all_methods_stand_side_by_side_and_order_as_they_must(shape):
    config = config_from_mapping(mapping(training={"gradient_checkpointing": False}))
    needs = {need.method: need for need in compare_methods(shape, config, gpu(24))}

    assert list(needs) == [
        "Full fine-tuning", "LoRA", "LoRA on int8", "QLoRA", "QLoRA with checkpointing", "AdaLoRA", "LoHa", "LoKr", "OFT",
        "VeRA", "MiSS", "IA3", "Prefix tuning", "Prompt tuning", "P-tuning", "Inference only",
    ]  # fmt: skip
    figures = {name: need.needed_bytes for name, need in needs.items()}
    assert figures["QLoRA with checkpointing"] < figures["QLoRA"] < figures["LoRA on int8"]
    assert figures["LoRA"] < figures["Full fine-tuning"]
    assert figures["Inference only"] < figures["LoRA"]
    assert needs["Full fine-tuning"].trainable == shape.num_parameters
    assert [name for name, need in needs.items() if need.is_current] == ["LoRA"]
    assert needs["Inference only"].overrides == ()


def test_several_devices_hold_less_each_where_they_share(shape):
    config = config_from_mapping(mapping(adapter={"method": "none"}, training={"gradient_checkpointing": True}))
    estimator = Estimator(shape, gpu(80))
    alone = estimator.estimate(config).needed_bytes

    two, eight = share_among(estimator, config, 2), share_among(estimator, config, 8)

    gradients = 4 * shape.num_parameters
    assert [share.sharing for share in two] == ["DDP", "FSDP", "device_map"]
    # Buckets of DDP hold every gradient a second time; the number of devices does not matter.
    assert two[0].needed_bytes == eight[0].needed_bytes > alone + gradients
    assert eight[1].needed_bytes < two[1].needed_bytes < alone
    assert eight[1].needed_bytes > alone / 8


@pytest.mark.parametrize(
    ("fitting", "sentence"),
    [
        ({"DDP", "FSDP", "device_map"}, "One copy per GPU fits"),
        ({"FSDP", "device_map"}, "up to 2 times faster than split, less the time that gathering layers takes"),
        ({"FSDP"}, "only sharded."),
        ({"device_map"}, "only with its layers split"),
        (set(), "sharded needs least, 1.0 GiB on each."),
    ],
)
def test_a_way_to_share_is_recommended_by_what_fits(shape, fitting, sentence):
    config = config_from_mapping(mapping(adapter={"method": "none"}))
    shares = share_among(Estimator(shape, gpu(80)), config, 2)
    needs = {"DDP": 4 * GIB, "FSDP": GIB, "device_map": 2 * GIB}
    verdicts = {True: "fits", False: "does_not_fit"}
    rated_shares = [
        share.model_copy(update={"verdict": verdicts[share.sharing in fitting], "needed_bytes": needs[share.sharing]})
        for share in shares
    ]

    assert sentence in recommend(rated_shares, GIB)


def test_what_cannot_be_sharded_is_not_recommended(shape):
    config = config_from_mapping(mapping(training={"optim": "adamw_8bit"}))
    shares = share_among(Estimator(shape, gpu(0.1)), config, 2)

    assert [bool(share.why_not) for share in shares] == [False, True, False]
    assert "adamw_8bit keeps state that cannot be divided" in shares[1].why_not
    assert "layers split needs least" in recommend(shares, GIB // 10)


@pytest.mark.parametrize(("method", "is_offered"), [("lora", True), ("ia3", False)])
def test_a_copy_on_each_gpu_that_does_not_fit_is_sharded_instead(shape, method, is_offered):
    copies = {"run": {"devices": [0, 1], "launcher": "accelerate"}, "adapter": {"method": method}}
    advice = advise(shape, config_from_mapping(mapping(**copies)), gpu(6))

    assert any("run.fsdp=full_shard" in change.overrides for change in advice.changes) is is_offered


@pytest.mark.parametrize(("fsdp", "sharing"), [("none", "DDP"), ("full_shard", "FSDP")])
def test_a_run_on_several_devices_is_estimated_as_one_of_its_processes(shape, fsdp, sharing):
    estimator, alone = Estimator(shape, gpu(80)), config_from_mapping(mapping())
    run = {"devices": [0, 1], "launcher": "accelerate", "fsdp": fsdp}

    estimate = estimator.estimate(config_from_mapping(mapping(run=run)))

    shares = {share.sharing: share.needed_bytes for share in share_among(estimator, alone, 2)}
    assert estimate.needed_bytes == shares[sharing]
    assert (estimate.needed_bytes > estimator.estimate(alone).needed_bytes) is (sharing == "DDP")
    assert any("each of 2 devices, which share the weights" in note for note in estimate.notes) is (sharing == "FSDP")


def test_targets_that_match_nothing_give_a_message_and_no_number(shape):
    with pytest.raises(ConfigError):
        estimate_memory(shape, config_from_mapping(mapping(adapter={"target_modules": ["no_such_layer"]})), gpu(8))


@pytest.mark.parametrize("size", ["hidden_size", "num_attention_heads", "head_dim", "vocab_size"])
def test_a_model_without_a_size_gives_a_message_and_no_number(shape, size):
    with pytest.raises(ModelError, match=size):
        estimate_memory(shape.model_copy(update={size: 0}), config_from_mapping(mapping()), gpu(8))


def test_a_product_of_unknown_size_gives_a_message_and_may_train(shape):
    modules = [replace(m, in_features=0) if m.name.endswith("down_proj") else m for m in shape.modules]

    with pytest.raises(MemoryUnknownError, match=r"down_proj of Qwen3ForCausalLM has a size of 0 ×") as error_info:
        estimate_memory(shape.model_copy(update={"modules": tuple(modules)}), config_from_mapping(mapping()), gpu(8))

    assert "while it trains" in error_info.value.fix


def test_a_mistake_of_the_estimate_is_not_laid_to_the_model(shape, monkeypatch):
    def fail(*_):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr("loratory.engine.memory.estimate.find_peak", fail)

    with pytest.raises(KeyError, match="a mistake of ours"):
        estimate_memory(shape, config_from_mapping(mapping()), gpu(8))
    with pytest.raises(KeyError):
        compare_methods(shape, config_from_mapping(mapping()), gpu(8))


def test_nf4_is_advised_before_int8_which_is_reported_as_slow(shape):
    plain = mapping(training={"per_device_train_batch_size": 4, "max_length": 2048})

    changes = advise(shape, config_from_mapping(plain), gpu(6)).changes

    alone = [change for change in changes if change.kind in ("nf4", "int8")]
    assert [change.kind for change in alone] == ["nf4", "int8"]
    assert "int8 is the slowest" in alone[1].cost
    assert not any("int8" in override for c in changes if c.kind == "combination" for override in c.overrides)


def test_int8_that_fits_is_advised_away_from(shape):
    config = config_from_mapping(mapping(model={"id": QWEN, "quantization": "int8"}))

    changes = {change.kind: change for change in advise(shape, config, gpu(80)).changes}

    assert changes["unquantized"].overrides == ("model.quantization=none",)
    assert changes["nf4"].cost.startswith("faster")
    assert any(note.startswith("int8 is the slowest") for note in estimate_memory(shape, config, gpu(80)).notes)
