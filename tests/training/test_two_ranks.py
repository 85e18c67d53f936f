"""Processes that share a step wait for each other's gradients, also where one of them has nothing to learn."""

import json
import os
import subprocess
import sys

import pytest

from tests.training.forking_workers import REPOSITORY
from tests.training.tiny_training import make_config, make_training
from tests.training.two_ranks import ROWS, STEPS

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_a_process_with_nothing_to_learn_keeps_the_others_going(head, tiny_model_folder, tmp_path):
    both = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_train_epochs": STEPS}
    adapter = {"method": "none"} if head == "trained" else {}
    alone = make_training(make_config(tiny_model_folder, adapter=adapter, training=both), ROWS, tmp_path)
    alone.trainer.train()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.training.two_ranks"]

    subprocess.run(
        [sys.executable, *launch, str(tiny_model_folder), str(tmp_path), head],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        timeout=240,  # without an answer they would wait for days
    )

    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == pytest.approx(alone.losses, rel=1e-4)
    assert len(first[0]) == STEPS
