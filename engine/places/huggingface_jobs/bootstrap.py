"""The first thing that runs in a job, before Loratory is there: its text is the job's command, so it needs no file.

It fetches Loratory's wheel from the bucket and lets `uv` install it with what it needs.
"""

import json
import os
import pathlib
import tempfile
import time

from huggingface_hub import HfApi

COMPANION = "loratory.engine.places.huggingface_jobs.companion"


def main() -> None:
    """Fetch the wheel and become the companion."""
    order = json.loads(os.environ["LORATORY_JOB"])
    wheel = pathlib.Path(tempfile.gettempdir()) / order["wheel"].rsplit("/", 1)[-1]
    for attempt in range(1, 7):
        try:
            HfApi().download_bucket_files(order["bucket"], [(order["wheel"], wheel)], raise_on_missing_files=True)
            break
        except Exception as error:
            if attempt == 6:
                raise
            print(f"The download of Loratory failed ({type(error).__name__}); trying again.", flush=True)
            time.sleep(2**attempt)
    arguments = ["uv", "run", "--no-project", "--with", str(wheel), "python", "-P", "-m", COMPANION]
    os.execvp("uv", arguments)  # noqa: S606, S607 - the image's own


if __name__ == "__main__":
    main()
