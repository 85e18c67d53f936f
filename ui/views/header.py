"""The line on top: name, and what the device has to give."""

from html import escape

from engine.hardware.devices import Device
from ui.views.quantities import gib


def render_header(device: Device | None, running: int, waiting: int, notice: str = "") -> str:
    """HTML of the mast: device with free memory, runs under way and waiting; below it what concerns the whole page."""
    chip = "no device found"
    if device is not None:
        chip = f"<b>{escape(device.name)}</b> · {gib(device.free_bytes)} of {gib(device.total_bytes)} GiB free"
    if running:
        chip += f" · {running} run{'' if running == 1 else 's'} under way"
    if waiting:
        chip += f" · {waiting} waiting"
    return (
        '<div class="mast" role="banner"><span class="name">Lora<i>tory</i></span>'
        '<span class="sub">fine-tune a language model, and know what you did</span>'
        f'<span class="chip">{chip}</span></div>'
        + (f'<p class="notice" role="status">{escape(notice)}</p>' if notice else "")
    )
