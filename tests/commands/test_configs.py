import pytest

from engine.commands.configs import load_config_argument
from engine.config.load import config_to_yaml
from engine.errors import ConfigError, StorageError
from engine.paths import local_owner
from engine.runs.store import RunStore
from tests.runs.supervision import config_for


def test_a_yaml_file_a_preset_and_a_run_are_all_configurations(home, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(config_to_yaml(config_for("from a file")))
    run = RunStore(home, local_owner()).create(config_for("from a run"))

    assert load_config_argument(str(file), (), home).run.name == "from a file"
    assert load_config_argument(run.id, (), home).run.name == "from a run"
    assert load_config_argument("quickstart-cpu", (), home).model.id == "smollm2-135m-instruct"


def test_overrides_apply_and_all_their_mistakes_are_reported(home, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(config_to_yaml(config_for()))
    config = load_config_argument(str(file), ("adapter.r=8", "training.learning_rate=1e-3"), home)
    assert (config.adapter.r, config.training.learning_rate) == (8, 1e-3)

    with pytest.raises(ConfigError) as error_info:
        load_config_argument(str(file), ("adapter.r=0", "training.learning_rate=fast"), home)
    assert {problem.field for problem in error_info.value.problems} == {"adapter.r", "training.learning_rate"}


def test_a_name_that_is_nothing_reports_what_there_is(home):
    with pytest.raises(ConfigError, match="there is no file, preset or run 'nosuch'"):
        load_config_argument("nosuch", (), home)
    with pytest.raises(StorageError, match=r"nosuch\.yaml cannot be read"):
        load_config_argument("nosuch.yaml", (), home)
