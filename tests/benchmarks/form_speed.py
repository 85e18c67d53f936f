"""How soon the memory bar moves: `python -m tests.benchmarks.form_speed`.

In Chromium, on the page itself with a model chosen: the rank is changed again and again, and for each change it is measured
how long it takes until the memory bar of the side panel has been redrawn. The page promises 150 milliseconds.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from tests.browser.chromium import chromium, open_page, open_tab
from tests.browser.show_fake import page_of
from tests.fake_services import fake_services

_CHANGE_AND_WAIT = """async (rank) => {
  const box = document.querySelector('#rank input[type=number]');
  const panel = document.querySelector('#panel');
  const redrawn = new Promise((resolve) => {
    const before = panel.textContent;
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory(prefix="loratory-form-") as folder:
        services = fake_services(Path(folder))
        with page_of(services) as address, chromium() as browser:
            page = open_page(browser, address)
            page.locator("#catalog [data-pick]").first.click()
            page.locator("#panel .bar").wait_for()
            open_tab(page, "Method")
            page.locator("#rank input[type=number]").wait_for()
            page.evaluate(_CHANGE_AND_WAIT, "12")
            times = []
            for number in range(repeat):
                page.wait_for_timeout(400)
                times.append(page.evaluate(_CHANGE_AND_WAIT, str(16 + number)))
    print(
        f"from a change of the rank to the memory bar: median {statistics.median(times):.0f} ms, "
        f"slowest of {repeat} {max(times):.0f} ms"
    )


if __name__ == "__main__":
    main()
