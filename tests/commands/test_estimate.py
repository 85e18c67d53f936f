"""`loratory estimate`: figures, several devices, and one step that is really taken."""

import json

import pytest

from loratory.engine.cli import run_command
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.supervision.memory_measurement import MeasuredStep


def write_config(tmp_path, tiny_model_folder):
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{id: {tiny_model_folder}}}\ndataset: {{source: sample:loratory-faq}}\n", encoding="utf-8")
    return str(path)


def run(arguments, capsys, *options):
    """Without a word on the data, rows as long as they may be, which takes no look at it."""
    code = run_command([*arguments, *(options or ["--no-data"])])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_object_has_every_key_of_the_contract(home, tmp_path, tiny_model_folder, capsys):
    code, out, _ = run(["estimate", write_config(tmp_path, tiny_model_folder), "--memory-gib", "8", "--json"], capsys)

    answer = json.loads(out)
    assert code == 0
    assert answer["verdict"] == "fits"
    assert {"parameters", "components_bytes", "allocated_bytes", "reserved_bytes", "needed_bytes", "phase"} <= set(
        answer
    )
    assert all({"change", "needed_bytes"} <= set(change) for change in answer["advice"])
    assert len(answer["methods"]) == 1 + sum(len(method.comparison_rows) for method in METHODS.values())
    assert "several_devices" not in answer
    assert "measured" not in answer


def test_the_rows_of_the_dataset_are_judged_unless_others_are_asked_for(home, tmp_path, tiny_model_folder, capsys):
    config = write_config(tmp_path, tiny_model_folder)
    command = ["estimate", config, "--memory-gib", "8", "--json", "--set"]
    answer = json.loads(run(command, capsys, "training.seed=42")[1])
    missing = json.loads(run(command, capsys, "dataset.source=missing.jsonl")[1])

    assert answer["rows"]["longest"] < 1024
    assert answer["expected_bytes"] < answer["rows"]["ceiling_bytes"] == missing["expected_bytes"]
    assert missing["rows"] is None
    assert "the data cannot be read: " in missing["notes"][-1]
    assert run(command, capsys, "dataset.source=missing.jsonl", "--data")[0] == 1


def test_several_devices_are_distinguished(home, tmp_path, tiny_model_folder, capsys):
    config = write_config(tmp_path, tiny_model_folder)
    _, out, _ = run(["estimate", config, "--memory-gib", "8", "--devices", "4", "--json"], capsys)
    _, text, _ = run(["estimate", config, "--memory-gib", "8", "--devices", "4"], capsys)

    assert [share["sharing"] for share in json.loads(out)["several_devices"]] == ["DDP", "FSDP"]
    assert "On each of 4 such devices:" in text
    assert json.loads(out)["recommended"] in text


def test_another_device_is_judged_by_its_name(home, tmp_path, tiny_model_folder, capsys):
    config = write_config(tmp_path, tiny_model_folder)
    code, out, _ = run(["estimate", config, "--device", "rtx-4090", "--json"], capsys)

    device = json.loads(out)["device"]
    assert code == 0
    assert device["name"] == "NVIDIA RTX 4090"
    assert device["free_bytes"] == device["total_bytes"] > 23 * 2**30
    assert run(["estimate", config, "--device", "RTX 9999"], capsys)[0] == 1
    assert run(["estimate", config, "--device", "T4", "--memory-gib", "8"], capsys)[0] == 2
    assert run(["estimate", config, "--device", "T4", "--measure"], capsys)[0] == 2


def test_a_measured_step_is_next_to_its_prediction(home, tmp_path, tiny_model_folder, capsys, monkeypatch):
    def measurement(job, on_progress):
        estimate = job._estimate
        return MeasuredStep(
            device_name="a CPU", measured_bytes=estimate.expected_bytes, predicted_bytes=estimate.expected_bytes,
            bound_bytes=estimate.needed_bytes, measures_process=True, allocated_bytes=None, step_seconds=1.5, rows=2,
            tokens=1024,
        )  # fmt: skip

    monkeypatch.setattr("loratory.engine.commands.estimate.MeasurementJob.run", measurement)
    config = write_config(tmp_path, tiny_model_folder)
    _, out, _ = run(["estimate", config, "--set", "run.devices=cpu", "--measure", "--json"], capsys)
    _, text, _ = run(["estimate", config, "--set", "run.devices=cpu", "--measure"], capsys)

    assert json.loads(out)["measured"]["step_seconds"] == 1.5
    assert "Measured on a CPU" in text


def test_what_the_device_cannot_run_is_reported_before_how_well_it_fits(home, tmp_path, tiny_model_folder, capsys):
    config = write_config(tmp_path, tiny_model_folder)
    settings = ["--set", "run.devices=cpu", "--set", "training.optim=paged_adamw_8bit"]
    refusal = "This device cannot run it: paged_adamw_8bit needs a CUDA device"

    _, out, _ = run(["estimate", config, *settings, "--json"], capsys)
    _, text, _ = run(["estimate", config, *settings], capsys)
    _, elsewhere, _ = run(["estimate", config, *settings, "--memory-gib", "8"], capsys)

    answer = json.loads(out)
    assert answer["verdict"] == "fits"
    assert answer["notes"][-1].startswith(refusal)
    assert text.startswith(refusal)
    assert "Fits." in text
    assert "cannot run it" not in elsewhere


@pytest.mark.parametrize(
    "arguments",
    [
        ["--measure", "--memory-gib", "8"],
        ["--memory-gib", "inf"],
    ],
)
def test_what_makes_no_sense_is_wrong_usage(home, tmp_path, tiny_model_folder, capsys, arguments):
    code, out, err = run(["estimate", write_config(tmp_path, tiny_model_folder), *arguments], capsys)

    assert code == 2
    assert out == ""
    assert err
