"""`python -m tests.benchmarks.page_start`: how soon the page answers, and what its process holds.

Starts the page several times on an empty home, each in a process of its own, and prints the time until it answers, the
computing time of that (which compares on a busy machine as well), and the memory that it holds then. In the last one the demo
model and the sample data are chosen in a real browser, so estimate and preview have been used, and the memory is read again;
then the rank is changed again and again, and the time until the side panel is redrawn is measured.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import expect

from tests.benchmarks.runs_tab import say
from tests.browser.chromium import chromium, open_page, open_tab
from tests.browser.real_server import RealServer, real_server

_MIB = 2**20
_CHANGES = 20
_CHANGE_AND_WAIT = """async (rank) => {
  const box = document.querySelector('#rank input[type=number]');
  const panel = document.querySelector('#panel');
  const before = panel.textContent;
  const redrawn = new Promise((resolve) => {
    const observer = new MutationObserver(() => {
      if (panel.textContent !== before) { observer.disconnect(); resolve(performance.now()); }
    });
    observer.observe(panel, {childList: true, subtree: true, characterData: true});
  });
  const began = performance.now();
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(box, rank);
  box.dispatchEvent(new Event('input', {bubbles: true}));
  return await redrawn - began;
}"""
_AS_FOR_A_PERSON = {"PYTHONDONTWRITEBYTECODE": ""}  # whose Python compiles the modules once, at the first start
_PATIENCE_MILLISECONDS = 240_000  # the demo model is fetched and converted on the way


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5)
    starts = parser.parse_args().starts
    seconds, processor_seconds, resident_mib = [], [], []
    with tempfile.TemporaryDirectory(prefix="loratory-benchmark-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        for number in range(starts):
            began = time.perf_counter()
            with real_server(home, **_AS_FOR_A_PERSON) as server:
                seconds.append(time.perf_counter() - began)
                processor_seconds.append(sum(psutil.Process(server.process.pid).cpu_times()[:2]))
                time.sleep(1)
                resident_mib.append(_resident_mib(server))
                if number == starts - 1:
                    use(server)
    say("from the start of `python app.py` to its first answer (wanted: 1.9 s)", seconds)
    say("of that computing, user and system", processor_seconds)
    print(f"the process holds then {statistics.median(resident_mib):.0f} MiB (at most {max(resident_mib):.0f})")


def use(server: RealServer) -> None:
    """Choose a model and data, and print what the process holds after estimate and preview."""
    with chromium() as browser:
        page = open_page(browser, server.url)
        page.locator("#catalog [data-pick]").first.click()
        open_tab(page, "Data")
        page.locator("#samples [data-pick]").first.click()
        expect(page.locator("#panel")).to_contain_text("Fits", timeout=_PATIENCE_MILLISECONDS)
        expect(page.locator("#row-shown .tokens").first).to_be_visible(timeout=_PATIENCE_MILLISECONDS)
        open_tab(page, "Method")
        times = []
        for rank in range(15, 16 + _CHANGES):  # the first one warms up
            page.wait_for_timeout(400)
            times.append(page.evaluate(_CHANGE_AND_WAIT, str(rank)) / 1000)
        say("from a change of the rank to the redrawn panel (wanted: 150 ms)", times[1:])
        heavy = sorted({name for name in ("libtorch", "tokenizers.abi3") if name in _mapped_files(server)})
        print(
            f"after estimate and preview it holds {_resident_mib(server):.0f} MiB; of torch and transformers: {heavy or 'nothing'}"
        )


def _resident_mib(server: RealServer) -> float:
    return float(psutil.Process(server.process.pid).memory_info().rss / _MIB)


def _mapped_files(server: RealServer) -> str:
    return " ".join(item.path for item in psutil.Process(server.process.pid).memory_maps())


if __name__ == "__main__":
    main()
