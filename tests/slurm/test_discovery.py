"""A first description of a cluster, from what `sinfo` shows."""

import pytest

from loratory.engine.commands.lab import find_problems
from loratory.engine.config.load import section_from_mapping
from loratory.engine.errors import ClusterError, ConfigError
from loratory.engine.places.slurm.discovery import (
    NodeGroup,
    ProbeGpu,
    ProbeReport,
    list_groups,
    memory_of,
    propose,
    to_yaml,
    write_place,
)
from loratory.engine.places.slurm.place import ClusterPlace, GpuType, read_place


def a_group(**changes) -> NodeGroup:
    return NodeGroup("gpu", True, True, 48.0, 4, 64, 500.0, (("a100", 4),))._replace(**changes)


class PrintedBySinfo:
    def __init__(self, *lines):
        self.lines = lines

    def run_command(self, *_):
        return "".join(f"{chr(31).join(line)}{chr(31)}\n" for line in self.lines)


def test_partitions_are_read_with_their_gpus_and_limits():
    sinfo = PrintedBySinfo(
        ("long*", "up", "2-00:00:00", "2", "64", "512000", "gpu:a100:4(S:0-1),shard:8", "(null)"),
        ("debug", "down", "infinite", "1", "8+", "16000", "(null)", "x,y"),
        ("old", "up", "30:00", "3", "16", "64000", "gpu:2", "(null)"),
    )

    long, debug, old = list_groups(sinfo)

    assert (long.partition, long.is_default, long.limit_hours, long.gpus) == ("long", True, 48.0, (("a100", 4),))
    assert (debug.is_up, debug.limit_hours, debug.cpus, debug.gpus) == (False, None, 8, ())
    assert (old.limit_hours, old.gpus) == (0.5, (("", 2),))


def test_the_partition_with_gpus_is_proposed_where_the_default_has_none():
    place = propose([a_group(partition="cpu", gpus=()), a_group(is_default=False)])

    assert place.partition == "gpu"
    assert place.gpu_types == (GpuType(name="a100", memory_gib=39.39, per_node=4, count=16),)
    assert (place.cpus, place.memory_gib, place.limit_hours) == (8, 16.0, 24.0)


def test_types_come_smallest_first_and_nodes_of_one_type_are_counted_together():
    place = propose([a_group(gpus=(("h100", 8),)), a_group(gpus=(("l4", 2),), nodes=3), a_group(gpus=(("l4", 1),))])

    assert [(kind.name, kind.count, kind.per_node) for kind in place.gpu_types] == [("l4", 10, 2), ("h100", 32, 8)]
    assert place.partition == ""  # the default needs no name


def test_a_cluster_without_a_usable_partition_is_an_error():
    with pytest.raises(ClusterError, match="No partition"):
        propose([a_group(is_up=False)])


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("a100", 39.39), ("nvidia_a100_80gb_pcie", 79.14), ("NVIDIA-H100", 79.10), ("rtx_3090", 23.60), ("l40s", 44.40),
        ("l4", 22.03), ("t4", 14.56), ("geforce_rtx_4090", 23.52), ("toy", None), ("", None), ("v100", None),
    ],
)  # fmt: skip
def test_memory_of_types_as_clusters_name_them(name, gib):
    assert memory_of(name) == gib


def test_what_is_written_is_read_again_and_the_old_file_stays(home):
    place = propose([a_group()])
    write_place(home, place)
    write_place(home, place.model_copy(update={"account": "lab"}))

    assert read_place(home) == place.model_copy(update={"account": "lab"})
    assert (home.root / "cluster.yaml.before").exists()
    assert "# Who pays, where the cluster accounts." in to_yaml(place)


@pytest.mark.parametrize(
    "wrong",
    [{"partition": "a b"}, {"account": "x\n#SBATCH"}, {"setup": ["a\nb"]}, {"poll_seconds": 0}, {"qos": "$(id)"}, {"x": 1}],
)  # fmt: skip
def test_values_that_could_become_something_else_are_refused(wrong):
    with pytest.raises(ConfigError):
        section_from_mapping(ClusterPlace, wrong)


def test_a_node_that_differs_from_its_description_is_a_problem():
    place = ClusterPlace(gpu_types=(GpuType(name="a100", memory_gib=79.0),), offline=False)
    report = ProbeReport(
        host="node07", python="3.11", versions={"torch": None}, gpus=(ProbeGpu(name="A100", memory_gib=39.4),), cores=4,
        memory_gib=30, has_internet=False,
    )  # fmt: skip

    memory, torch, network = find_problems(place, "a100", report)

    assert memory == "A100 has 39.4 GiB; cluster.yaml has 79."
    assert "PyTorch" in torch
    assert "offline: true" in network
