"""`loratory train` on rows with images: checked, estimated, trained, and refused where a model takes none."""

import json

import pytest

from loratory.engine.config.load import config_to_yaml
from loratory.engine.paths import local_owner
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.store import RunStore
from tests.e2e.test_scripts_for_real import loratory, run_here
from tests.supervision.fake_runs import config_for
from tests.tiny_vision import make_tiny_vision_model, member_of
from tests.training.test_image_runs import write_image_rows

pytestmark = pytest.mark.e2e


def config_file(tmp_path, model, data, **sections):
    training = {"max_steps": 10, "max_length": 2048, "eval_max_new_tokens": 4, "learning_rate": 1e-3}
    config = config_for(
        "Pictures",
        model={"id": str(model)},
        dataset={"source": str(data), "eval_fraction": 0.1},
        adapter={"r": 4, "lora_alpha": 8},
        training=training,
        **sections,
    )
    file = tmp_path / "pictures.yaml"
    file.write_text(config_to_yaml(config))
    return file


def test_a_run_on_rows_with_images_starts_from_the_command(home, tmp_path):
    model = make_tiny_vision_model(tmp_path / "idefics3", member_of("idefics3"))
    data = write_image_rows(tmp_path / "rows.jsonl")
    file = config_file(tmp_path, model, data, vision={"max_pixels": 16_384, "projector": "full"})

    estimate = json.loads(loratory("estimate", file, "--json"))
    result = json.loads(loratory("train", file, "--json"))

    assert (result["status"], result["steps"]) == ("completed", 10)
    run = RunStore(home, local_owner()).get(result["run_id"])
    assert read_history(run.folder.events).last_step == 10
    provenance = read_provenance(run.folder)
    assert provenance.dataset_fingerprint
    assert result["predicted_bytes"] == estimate["expected_bytes"]
    assert (run.folder.adapter / "adapter_model.safetensors").is_file()


def test_rows_with_images_are_refused_for_a_text_model(home, tmp_path, tiny_model_folder):
    file = config_file(tmp_path, tiny_model_folder, write_image_rows(tmp_path / "rows.jsonl", count=2))
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text(f"{rows[1]}\n")

    code, out, err = run_here("train", file, "--json")

    assert (code, out) == (1, "")
    assert "it has images, and this model takes none; choose a vision-language model" in err
    assert RunStore(home, local_owner()).ids() == []
