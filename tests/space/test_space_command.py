"""`loratory space` against a stand-in of the Hub: what a person gets, and what goes wrong as the Hub would."""

import json

import pytest
from huggingface_hub import SpaceStage

from loratory.engine.models.prepared import ModelProgress
from loratory.engine.models.source import ModelSource
from loratory.engine.space.hub import STAGES
from tests.hub.server import TOKEN, Fault

NAME = "ada/loratory"
SHOWN = ("--visibility", "protected")
SECRET = "hf_SecretOfTheMirrorThatStaysSecret"


def test_one_command_makes_a_private_space_that_runs(hub, loratory, monkeypatch):
    monkeypatch.setenv("MIRROR", SECRET)
    hub.stages = ["BUILDING", "APP_STARTING", "RUNNING"]

    code, out, err = loratory("create", NAME, "--admit", "ada", "--secret", "MIRROR", "--secret", "HF_TOKEN")

    assert code == 0, err
    space, repository = hub.spaces[NAME], hub.repositories[NAME]
    assert repository.private
    assert repository.messages == ["Create Loratory's Space"]
    assert {"README.md", "Dockerfile", "requirements.txt"} < set(repository.files())
    assert (space.sdk, space.hardware) == ("docker", "cpu-basic")
    assert {key: secret["value"] for key, secret in space.secrets.items()} == {
        "MIRROR": SECRET, "HF_TOKEN": TOKEN, "LORATORY_ADMITTED": "ada",
    }  # fmt: skip
    assert {key: variable["value"] for key, variable in space.variables.items()} == {
        "LORATORY_BUCKET": "ada/loratory-loratory"
    }
    assert hub.buckets == {"ada/loratory-loratory": True}
    assert "https://ada-loratory.hf.space" in out
    assert f"{hub.address}/spaces/{NAME}" in out
    assert "after 48 h without a visit" in out
    assert "is building its image" in err
    assert SECRET not in out + err
    assert TOKEN not in out + err


def test_who_is_admitted_does_not_go_along_with_a_duplicate(hub, loratory):
    # Variables of a Space are public, and copied into its duplicates; secrets are neither.
    assert loratory("create", NAME, "--admit", "bob", "--no-bucket", *SHOWN)[0] == 0
    assert hub.spaces[NAME].variables == {}
    assert "LORATORY_ADMITTED" in hub.spaces[NAME].secrets


def test_people_from_whom_the_hub_hides_the_space_are_not_admitted(hub, loratory, refusal):
    assert "to ada alone, so bob cannot open it" in refusal("create", NAME, "--admit", "ada", "--admit", "bob")
    assert hub.spaces == {}
    assert loratory("create", "lab/loratory", "--admit", "lab")[0] == 0
    assert "cannot open it" in loratory("update", "lab/loratory", "--admit", "bob")[2]
    assert loratory("create", NAME, "--admit", "bob,lab", "--admit", "@eve", *SHOWN)[0] == 0
    assert hub.spaces[NAME].secrets["LORATORY_ADMITTED"]["value"] == "bob,lab,@eve"


def test_a_dry_run_writes_the_files_without_a_request(hub, loratory, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    code, out, _ = loratory("create", NAME, "--dry-run", str(tmp_path / "image"), "--json")

    assert code == 0
    assert hub.requests == {}
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "image").iterdir()}
    assert json.loads(out) == {"folder": str(tmp_path / "image"), "files": sizes}
    assert loratory("create", NAME, "--dry-run", str(tmp_path / "image"))[0] == 1  # not empty


def test_a_space_that_is_there_is_left_alone(hub, refusal):
    hub.add(NAME, {"README.md": b"mine"})
    assert "Use `loratory space update`" in refusal("create", NAME)
    assert hub.repositories[NAME].files() == {"README.md": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bob/loratory",), "ada may not make a Space for bob."),
        (("loratory",), "not formed like owner/name"),
        ((NAME, "--hardware", "t4-smal"), "such as t4-small"),
        ((NAME, "--hardware", "zero-a10g"), "ZeroGPU"),
        ((NAME, "--secret", "NOT_SET_ANYWHERE"), "The variable NOT_SET_ANYWHERE is not set"),
        ((NAME, "--admit", "a b"), "'a b' is not the name of a person"),
        ((NAME, "--bucket", "runs"), "not formed like owner/name"),
        ((NAME, "--warm", "no-such-model"), "neither in the catalogue"),
    ],
)
def test_mistakes_are_found_before_anything_is_made(hub, refusal, arguments, message):
    assert message in refusal("create", *arguments)
    assert hub.spaces == hub.buckets == {}


@pytest.mark.parametrize("argument", ["HF_TOKEN={}", "HF_TOKEN:{}", "{}", "{}:HF_TOKEN", "HF_TOKEN: {}"])
def test_a_value_on_the_command_line_is_refused_and_not_repeated(hub, refusal, argument):
    err = refusal("create", NAME, "--secret", argument.format(SECRET))
    assert "takes the name of an environment variable" in err
    assert SECRET not in err


def test_the_space_may_have_another_token_than_who_makes_it(hub, loratory, monkeypatch):
    monkeypatch.setenv("SPACE_TOKEN", SECRET)
    assert loratory("create", NAME, "--secret", "HF_TOKEN:SPACE_TOKEN")[0] == 0
    assert hub.spaces[NAME].secrets["HF_TOKEN"]["value"] == SECRET


def test_without_a_login_the_error_names_the_command_to_log_in(hub, refusal, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for command in (("create", NAME), ("update", NAME), ("status", NAME), ("delete", NAME, "--yes")):
        assert "A Space needs a Hugging Face token, and there is none." in refusal(*command)


def test_offline_mode_is_reported(hub, refusal, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal("create", NAME)


def test_a_free_account_gets_the_plan_that_it_needs(hub, loratory, refusal):
    hub.has_plan = False
    err = refusal("create", NAME, "--no-bucket")
    assert "no credit, plan or room" in err
    assert "PRO or Team" in err
    assert hub.spaces == {}

    code, out, err = loratory("create", NAME, "--no-bucket", "--sdk", "gradio", "--hardware", "zero-a10g")
    assert code == 0, err
    assert "zero-a10g, $0.00 an hour" in out
    assert {"app.py", "requirements.txt"} < set(hub.repositories[NAME].files())


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "does not let your token write to ada/loratory"),
        (400, "refuses this for ada/loratory"),
        (503, "out of order"),
    ],
)
@pytest.mark.parametrize("step", ["create", "commit", "runtime"])
def test_each_refusal_ends_in_words_without_the_token(hub, refusal, step, status, message):
    hub.faults = [Fault(step, status, times=9)]
    err = refusal("create", NAME, "--no-bucket")
    assert message in err
    assert TOKEN not in err
    assert ("loratory space update" in err) == (step == "commit")


@pytest.mark.exhaustive(quick=3)
@pytest.mark.parametrize("what", ["reset", "lost", 503])
@pytest.mark.parametrize("step", ["whoami", "list_hardware", "bucket", "create", "preupload", "commit", "runtime"])
def test_what_passes_is_waited_for_and_done_once(hub, loratory, step, what):
    hub.faults = [Fault(step, what)]
    code, _, err = loratory("create", NAME, "--secret", "HF_TOKEN")
    assert code == 0, err
    assert hub.repositories[NAME].messages == ["Create Loratory's Space"]
    assert list(hub.spaces[NAME].secrets) == ["HF_TOKEN"]


def test_an_interrupted_create_is_finished_by_update(hub, loratory):
    hub.faults = [Fault("commit", 500, times=3)]
    assert loratory("create", NAME, "--admit", "bob", *SHOWN)[0] == 1
    assert hub.repositories[NAME].files() == {}

    code, out, err = loratory("update", NAME)

    assert code == 0, err
    assert "Dockerfile" in hub.repositories[NAME].files()
    assert "Dockerfile changed" in out
    assert hub.spaces[NAME].secrets["LORATORY_ADMITTED"]["value"] == "bob"


@pytest.mark.parametrize(
    ("stage", "log", "message"),
    [
        ("BUILD_ERROR", "build", "could not build its image"),
        ("RUNTIME_ERROR", "run", "ended, or did not answer in time"),
        ("CONFIG_ERROR", None, "settings in README.md"),
        ("STOPPED", "run", "is stopped"),
        ("SOMETHING_NEW", None, "in the state SOMETHING_NEW"),
    ],
)
def test_a_space_that_does_not_run_is_an_error_with_the_end_of_its_log(hub, refusal, stage, log, message):
    hub.stages = ["BUILDING", stage]
    hub.logs = {log: [f"line {number}" for number in range(100)] + [f"ERROR: no \x1b[31mmatching version {TOKEN}"]}

    err = refusal("create", NAME)
    assert message in err
    assert ("line 99" in err) == (log is not None)
    assert "line 79" not in err
    assert "\x1b" not in err
    assert TOKEN not in err


def test_the_state_from_before_the_commit_is_not_taken_for_its_end(hub, loratory):
    hub.stages = ["NO_APP_FILE", "NO_APP_FILE", "BUILDING", "RUNNING"]
    code, out, err = loratory("create", NAME)
    assert code == 0, err
    assert "is running" in out


def test_a_space_that_never_gets_files_is_reported(hub, loratory):
    hub.stages = ["NO_APP_FILE"]
    assert "has no files yet" in loratory("create", NAME)[2]


def test_each_state_that_the_library_knows_has_words():
    assert {stage.value for stage in SpaceStage} < STAGES.keys()


def test_without_waiting_it_prints_one_object_of_what_it_does(hub, loratory):
    hub.stages = ["BUILDING"]
    code, out, _ = loratory("create", NAME, "--no-wait", "--json")
    assert code == 0
    assert json.loads(out)["words"] == "is building its image."


def test_a_space_without_a_token_is_reported_to_lose_its_runs(hub, loratory):
    assert "lost at each restart: no token for the bucket ada/loratory-loratory" in loratory("create", NAME)[1]
    out = loratory("update", NAME, "--secret", "HF_TOKEN")[1]
    assert "kept in the bucket ada/loratory-loratory" in out


def test_a_time_to_sleep_is_refused_where_it_cannot_be_chosen(hub, loratory):
    assert "cpu-basic always sleeps after 48 hours" in loratory("create", NAME, "--sleep-hours", "3")[2]
    assert hub.spaces == {}
    assert loratory("create", NAME, "--sleep-hours", "3", "--hardware", "cpu-upgrade")[0] == 0
    assert hub.spaces[NAME].sleep_seconds == 3 * 3600


def test_a_paused_space_has_not_failed(hub, loratory):
    hub.stages = ["PAUSED"]
    code, out, _ = loratory("create", NAME)
    assert code == 0
    assert "is paused" in out


def test_a_space_that_never_gets_there_is_given_up_in_time(hub, refusal, monkeypatch):
    hub.stages = ["BUILDING"]
    monkeypatch.setattr("loratory.engine.commands.space._WAIT_SECONDS", 60)
    assert "not running within 1 min" in refusal("create", NAME)


def test_a_public_bucket_is_not_used(hub, refusal):
    hub.buckets["ada/loratory-loratory"] = False
    assert "is public" in refusal("create", NAME)
    assert hub.spaces == {}


def test_the_build_of_an_image_downloads_models_with_words(loratory, home, monkeypatch):
    def resolve(config, of_home, on_progress):
        on_progress(ModelProgress("downloading", "Downloading.", 1, 2))
        return ModelSource(f"{of_home.root}/{config.id}", config.id)

    monkeypatch.setattr("loratory.engine.commands.space.resolve_model", resolve)
    code, out, err = loratory("warm", "a/b", "c/d")
    assert code == 0, err
    assert out == f"a/b: {home.root}/a/b\nc/d: {home.root}/c/d\n"
