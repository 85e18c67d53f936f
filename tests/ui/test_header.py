"""The line on top: what the device has to give, and who supervises where this server does not."""

import os
from dataclasses import replace

from loratory.engine.hardware.device import Device, Obstacle
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.supervision.supervisor import Supervisor, supervisor_of
from loratory.ui.backend.run_reader import RunReader
from loratory.ui.build import _header, render_header
from tests.supervision.fake_runs import fake_settings
from tests.waiting import wait_until


def test_a_server_that_stands_by_reports_it_until_it_takes_over(services, home):
    first, second = Supervisor(services.home, fake_settings()), Supervisor(services.home, fake_settings())
    first.start()
    second.start()
    page = replace(services, standing_by=second.explain_standing_by)
    reader = RunReader(services.runs)
    try:
        wait_until(lambda: supervisor_of(services.home) is not None)
        assert (
            f"Another Loratory process (pid {os.getpid()}) already supervises the runs of this home"
            in _header(page, reader).html
        )

        first.stop()
        wait_until(lambda: second.role == "supervising")
        assert "supervises" not in _header(page, reader).html
    finally:
        first.stop()
        second.stop()


def test_a_gpu_that_pytorch_cannot_use_is_not_the_device_and_has_its_reason(services):
    obstacle = Obstacle("PyTorch has no kernels for it.", "Install another.")
    gpu = Device("cuda", 0, "GTX 1080", 8 << 30, 8 << 30, has_fast_bfloat16=False, obstacle=obstacle)

    html = _header(replace(services, devices=lambda: (gpu, describe_processor())), RunReader(services.runs)).html

    assert "GTX 1080" not in html
    assert "PyTorch has no kernels for it. Install another." in html


def test_what_is_said_below_the_line_is_not_markup():
    assert "<b>one</b>" not in render_header(None, 0, 0, "<b>one</b>")
    assert "notice" not in render_header(None, 1, 2)


def test_the_active_runs_lead_to_the_newest_of_them():
    assert 'data-pick="follow:20261130-1"' in render_header(None, 2, 0, active="20261130-1")
    assert "data-pick" not in render_header(None, 0, 2)
