"""What a person names is found on the disk, or it is said what is wrong and what to do."""

import json
from pathlib import Path

import pytest

from loratory.engine.chat.contract import AdapterChoice, ChatTarget
from loratory.engine.chat.target import list_checkpoints, plan_load
from loratory.engine.config.load import config_from_mapping, config_to_yaml
from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ModelError, RunError
from loratory.engine.runs.checkpoints import Manifest, describe_files
from loratory.engine.runs.run import RunFolder


def write_adapter(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "base_model_name_or_path": "org/model", "r": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def write_run(folder: Path, *, finished: bool = True, checkpoints: tuple[int, ...] = (), **sections: object) -> Path:
    folder.mkdir(parents=True)
    config = config_from_mapping(
        {
            "model": {"id": "org/model", "quantization": "nf4"},
            "dataset": {"source": "sample:x"},
            "run": {"name": folder.name},
            **sections,
        }
    )
    (folder / "config.yaml").write_text(config_to_yaml(config))
    if finished:
        write_adapter(folder / "adapter")
    for step in checkpoints:
        checkpoint = folder / "checkpoints" / f"step-{step}"
        write_adapter(checkpoint / "adapter")
        manifest = Manifest(step=step, files=describe_files(checkpoint))
        (checkpoint / "MANIFEST.json").write_text(manifest.model_dump_json())
    return folder


def test_a_run_is_loaded_with_its_own_base_in_its_own_precision(tmp_path):
    run = write_run(tmp_path / "run-1")

    plan = plan_load(ChatTarget.of_run(run))

    assert (plan.model.id, plan.model.quantization) == ("org/model", "nf4")
    assert plan.tuned.folder == run / "adapter"
    assert plan.method_name == "QLoRA"
    assert plan.notes == ()


def test_a_checkpoint_is_loaded_from_its_own_folder(tmp_path):
    run = write_run(tmp_path / "run-1", finished=False, checkpoints=(5, 10))

    assert plan_load(ChatTarget.of_run(run, "step-10")).tuned.folder == run / "checkpoints" / "step-10" / "adapter"


def test_checkpoints_are_listed_newest_first_and_half_made_ones_are_not(tmp_path):
    run = write_run(tmp_path / "run-1", checkpoints=(5, 100, 20))
    write_adapter(run / "checkpoints" / "step-200" / "adapter")  # its manifest is not there yet
    write_adapter(run / "checkpoints" / ".unfinished-step-300" / "adapter")

    assert list_checkpoints(run) == ("step-100", "step-20", "step-5")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run = write_run(tmp_path / "run-1", checkpoints=(5, 10))
    (run / "checkpoints" / "step-10" / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")

    with pytest.raises(RunError, match=r"has no complete checkpoint 'step-10'"):
        plan_load(ChatTarget.of_run(run, "step-10"))


def test_a_run_without_an_adapter_reports_it_and_offers_its_checkpoints(tmp_path):
    with pytest.raises(RunError, match=r"The run run-1 has no adapter yet\. Wait for its first checkpoint"):
        plan_load(ChatTarget.of_run(write_run(tmp_path / "run-1", finished=False)))
    with pytest.raises(RunError, match=r"Choose one of its checkpoints: step-10, step-5\."):
        plan_load(ChatTarget.of_run(write_run(tmp_path / "run-2", finished=False, checkpoints=(5, 10))))


@pytest.mark.parametrize("name", ["step-7", "../adapter", "", "step-", "step-10/../step-5"])
def test_an_unknown_checkpoint_is_refused_with_those_that_exist(tmp_path, name):
    run = write_run(tmp_path / "run-1", checkpoints=(5, 10))

    with pytest.raises(
        RunError, match=r"has no complete checkpoint .* Choose one of its checkpoints: step-10, step-5\."
    ):
        plan_load(ChatTarget.of_run(run, name))


def test_a_bare_adapter_brings_the_base_that_it_names(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path="org/other", revision="abc", peft_type="IA3")

    plan = plan_load(ChatTarget.of_run(adapter))

    assert (plan.model.id, plan.model.revision, plan.method_name) == ("org/other", "abc", "IA3")


def test_the_demo_model_is_found_under_its_catalogue_name(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct")

    assert plan_load(ChatTarget.of_run(adapter)).model.id == "smollm2-135m-instruct"


def test_a_base_that_the_person_names_counts_more_than_the_adapters(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path="/gone/elsewhere")
    target = ChatTarget(model=ModelConfig(id="org/copy"), tuned=AdapterChoice(folder=adapter))

    assert plan_load(target).model.id == "org/copy"


def test_a_base_that_is_gone_is_named_without_its_path(tmp_path):
    adapter = write_adapter(tmp_path / "mine", base_model_name_or_path="/home/somebody/models/llama-x")

    with pytest.raises(ModelError, match=r"The base model of mine, llama-x, is not on this machine\.") as error_info:
        plan_load(ChatTarget.of_run(adapter))
    assert "somebody" not in str(error_info.value)


def test_another_quantization_than_the_runs_is_loaded_and_noted(tmp_path):
    target = ChatTarget(tuned=AdapterChoice(folder=write_run(tmp_path / "run-1")), quantization="none")

    plan = plan_load(target)

    assert plan.model.quantization == "none"
    assert plan.notes == ("run-1 was trained with quantization nf4 and is loaded with none: answers may differ.",)


def test_a_fully_trained_run_is_a_model_of_its_own(tmp_path):
    run = write_run(tmp_path / "run-1", finished=False, model={"id": "org/model"}, adapter={"method": "none"})
    (run / "adapter").mkdir()
    (run / "adapter" / "config.json").write_text("{}")

    plan = plan_load(ChatTarget.of_run(run))

    assert (plan.tuned.method, plan.method_name) == ("none", "Full fine-tuning")


def test_two_runs_on_one_base_stand_side_by_side_and_on_two_bases_do_not(tmp_path):
    first, second = write_run(tmp_path / "run-1"), write_run(tmp_path / "run-2")
    other = write_run(tmp_path / "run-3", model={"id": "org/another"})

    plan = plan_load(ChatTarget(tuned=AdapterChoice(folder=first), second=AdapterChoice(folder=second)))
    assert list(plan.trained_weights) == ["tuned", "second"]
    with pytest.raises(ModelError, match=r"run-1 was trained on org/model, run-3 on org/another\. Compare two runs"):
        plan_load(ChatTarget(tuned=AdapterChoice(folder=first), second=AdapterChoice(folder=other)))


def test_nothing_chosen_is_reported(tmp_path):
    with pytest.raises(ModelError, match="No model was chosen"):
        plan_load(ChatTarget())


def test_folders_that_hold_no_adapter_are_distinguished(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    with pytest.raises(ModelError, match="empty holds neither a run nor an adapter"):
        plan_load(ChatTarget.of_run(tmp_path / "empty"))
    with pytest.raises(ModelError, match="model holds a model, not an adapter"):
        plan_load(ChatTarget.of_run(tmp_path / "model"))
    with pytest.raises(RunError, match="is not a run and has no checkpoints"):
        plan_load(ChatTarget.of_run(write_adapter(tmp_path / "adapter"), "step-5"))


@pytest.mark.parametrize("initialization", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_rewrites_its_base_is_refused(tmp_path, initialization):
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path="some/base", init_lora_weights=initialization)

    with pytest.raises(ModelError, match=f"initialized with {initialization}, which changes the weights of its base"):
        plan_load(ChatTarget(tuned=AdapterChoice(folder=adapter)))


@pytest.mark.parametrize("initialization", [True, False, "gaussian", "eva", "orthogonal"])
def test_an_adapter_that_leaves_its_base_alone_is_taken(tmp_path, initialization):
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path="some/base", init_lora_weights=initialization)

    assert plan_load(ChatTarget(tuned=AdapterChoice(folder=adapter))).tuned.method == "lora"


def test_pickled_adapters_are_never_opened(tmp_path):
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")

    with pytest.raises(ModelError, match=r"is a pickle file .* can run code"):
        plan_load(ChatTarget.of_run(adapter))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"peft_type": 3', "\x00"])
def test_a_damaged_adapter_configuration_is_reported(tmp_path, text):
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(text)

    with pytest.raises(ModelError, match=r"The adapter_config\.json of adapter cannot be read"):
        plan_load(ChatTarget.of_run(adapter))


def test_no_message_tells_where_someone_keeps_files(tmp_path):
    (tmp_path / "secret" / "base-a").mkdir(parents=True)
    (tmp_path / "secret" / "base-b").mkdir()
    adapter = write_adapter(tmp_path / "one", base_model_name_or_path=str(tmp_path / "secret" / "base-a"))
    other = write_adapter(tmp_path / "two", base_model_name_or_path=str(tmp_path / "secret" / "base-b"))

    with pytest.raises(ModelError) as error_info:
        plan_load(ChatTarget(tuned=AdapterChoice(folder=adapter), second=AdapterChoice(folder=other)))

    assert "secret" not in str(error_info.value)
    assert "base-a" in str(error_info.value)


def test_who_chats_with_a_shared_run_gets_none_of_its_owners_own_models(home):
    ann, bea = home.for_person("ann"), home.for_person("bea")
    run = write_run(home.runs / "ann" / "20260101-000000-000-abcd")
    (run / "control").mkdir()
    RunFolder(run).shared_mark.write_text("")

    theirs, own = plan_load(ChatTarget.of_run(run), bea), plan_load(ChatTarget.of_run(run), ann)

    assert theirs.owner == own.owner == "ann"
    assert own.home(ann).own_hub_cache == ann.own_hub_cache
    assert theirs.home(bea).own_hub_cache == bea.own_hub_cache
    assert own.home(home).own_hub_cache == ann.own_hub_cache, "on the machine itself, its admin may"


def test_a_folder_that_a_shared_run_names_is_looked_up_as_its_owner_may(home):
    bea = home.for_person("bea")
    base = home.for_person("ann").uploads / "base"
    base.mkdir(parents=True)
    run = write_run(home.runs / "ann" / "20260101-000000-000-abcd", model={"id": str(base)})
    (run / "control").mkdir()
    RunFolder(run).shared_mark.write_text("")

    assert plan_load(ChatTarget.of_run(run), bea).home(bea).owner == "ann"
