"""What a person of a lab puts into their own bucket, or names in a run, harms no other person and not the lab."""

import hashlib
import json

import pytest

from loratory.engine.accounts.lab import LabSettings, save_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.errors import RunError
from loratory.engine.paths import REFUSAL
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.transfer import collect_inputs

HOSTILE = [
    (layout.END, b"{"),
    (layout.END, b'{"exit_code": "no"}'),
    (layout.segment_name(0), b"\x00" * 17_000_000),
    ("results/adapter/adapter_config.json", b"[1]"),
    ("checkpoints/step-1/MANIFEST.json", b"{"),
    ("worker.log", b"\x00" * 17_000_000),
]


@pytest.mark.parametrize(("name", "data"), HOSTILE)
def test_what_a_person_puts_into_the_own_bucket_harms_no_one(lab, hugging_face, name, data):
    run, job = lab.begins()
    lab.writes(run, name, data)
    if name.startswith("results"):
        lab.writes(run, layout.END, b'{"exit_code": 0}')
    job.step()
    hugging_face.end(hugging_face.only_job(), "COMPLETED")
    job.wants_cancel = True
    job._clock = lambda: 1e9
    for _ in range(4):
        job.step()

    assert job.view.stage == "ended"
    sizes = [path.stat().st_size for path in run.folder.path.rglob("*") if path.is_file()]
    assert max(sizes) < 16_000_000


def test_a_manifest_names_no_file_of_another_person(lab):
    (run, job), other = lab.begins(), lab.run("bob")
    secret = other.folder.config.read_bytes()
    outside = f"../../../../../bob/{other.id}/config.yaml"
    manifest_files = {outside: {"size_bytes": len(secret), "sha256": hashlib.sha256(secret).hexdigest()}}
    (run.folder.path / "checkpoints").mkdir(exist_ok=True)
    lab.writes(run, "checkpoints/step-1/MANIFEST.json", json.dumps({"step": 1, "files": manifest_files}).encode())
    job.step()

    assert list((run.folder.path / "checkpoints").iterdir()) == []


def test_files_of_others_are_not_sent(lab, home, tmp_path):
    own = home.for_person("ada").uploads
    own.mkdir(parents=True)
    (tmp_path / "secret.jsonl").write_text("{}")
    (own / "rows").mkdir()
    (own / "rows" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (own / "mine.jsonl").write_text("{}")

    for source in (own / "rows", own / "rows" / "link.jsonl", tmp_path / "secret.jsonl"):
        with pytest.raises(RunError, match=REFUSAL[0]):
            collect_inputs(lab.run("ada", dataset__source=str(source)), home)
    assert "data/mine.jsonl" in collect_inputs(lab.run("ada", dataset__source=str(own / "mine.jsonl")), home)


def test_what_exceeds_the_disk_space_of_its_person_is_not_fetched(lab, home):
    save_settings(home, LabSettings(limits=LabLimits(disk_gb_per_person=0.01, free_disk_gb=0)))
    run, job = lab.begins()
    offset = 0
    for _ in range(40):
        lab.writes(run, layout.segment_name(offset), b'"x"\n' * 100_000)
        offset += 400_000
        job.step()

    assert "of 10.0 MB" in job.view.trouble.what
    assert run.folder.events.stat().st_size < 12_000_000
    save_settings(home, LabSettings(limits=LabLimits(disk_gb_per_person=1, free_disk_gb=0)))
    job.step()
    assert job.view.trouble is None
