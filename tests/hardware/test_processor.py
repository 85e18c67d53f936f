"""The processor, and the memory that a container leaves to us."""

from loratory.engine.hardware.device import MemoryNow
from loratory.engine.hardware.processor import (
    cgroup_memory,
    describe_processor,
    has_fast_bfloat16,
    memory_now,
    processor_name,
)

SAPPHIRE_RAPIDS = "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)  Platinum 8481C\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n"
SKYLAKE = "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6148\nflags\t\t: fpu avx2 avx512f avx512_bf16x amx_tile\n"
GENOA = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx512f avx512_bf16\n"


def make_cgroup(folder, limit, used, inactive_file=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 7\ninactive_file {inactive_file}\n")
    return folder


def test_fast_bfloat16_is_detected_by_maker_and_flags():
    assert has_fast_bfloat16(SAPPHIRE_RAPIDS)
    assert has_fast_bfloat16(GENOA)
    without_amx = SAPPHIRE_RAPIDS.replace(" amx_bf16", "")  # as some virtual machines show it
    assert not has_fast_bfloat16(without_amx)
    for cpuinfo in (SKYLAKE, ""):
        assert not has_fast_bfloat16(cpuinfo)


def test_the_first_core_speaks_for_all():
    assert has_fast_bfloat16(f"{SAPPHIRE_RAPIDS}\n{SKYLAKE}")
    assert processor_name(f"{SKYLAKE}\n{SAPPHIRE_RAPIDS}") == "Intel(R) Xeon(R) Gold 6148"


def test_the_processors_name_is_shown_without_padding():
    assert processor_name(SAPPHIRE_RAPIDS) == "Intel(R) Xeon(R) Platinum 8481C"
    assert processor_name("") != ""


def test_a_cgroup_limit_counts_droppable_file_cache_as_free(tmp_path):
    folder = make_cgroup(tmp_path / "pod", limit=1000, used=700, inactive_file=200)

    assert cgroup_memory(folder) == MemoryNow(total_bytes=1000, free_bytes=500)


def test_a_cgroup_without_a_limit_sets_none(tmp_path):
    assert cgroup_memory(make_cgroup(tmp_path / "pod", limit="max", used=700)) is None
    assert cgroup_memory(tmp_path / "absent") is None


def test_a_cgroup_over_its_limit_has_nothing_free(tmp_path):
    assert cgroup_memory(make_cgroup(tmp_path / "pod", limit=1000, used=1200)) == MemoryNow(1000, 0)


def test_the_tightest_limit_on_the_way_up_holds(tmp_path, monkeypatch):
    make_cgroup(tmp_path / "slice", limit=3_000_000, used=2_500_000)
    make_cgroup(tmp_path / "slice" / "pod", limit=2_000_000, used=100_000)
    own = tmp_path / "own-cgroup"
    own.write_text("9:name=systemd:/\n0::/slice/pod\n")
    monkeypatch.setattr("loratory.engine.hardware.processor._CGROUP_ROOT", tmp_path)
    monkeypatch.setattr("loratory.engine.hardware.processor._OWN_CGROUP", own)

    assert memory_now() == MemoryNow(total_bytes=2_000_000, free_bytes=500_000)


def test_this_machines_processor_is_described():
    processor = describe_processor()

    assert processor.kind == "cpu"
    assert processor.cores >= 1
    assert 0 < processor.free_bytes <= processor.total_bytes
    assert processor.torch_name == "cpu"
