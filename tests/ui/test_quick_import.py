"""The page starts without what it does not use, and is the page that Gradio makes by itself."""

import json
import subprocess
import sys
from itertools import zip_longest

import pytest

IMPORTS = """
import sys
import loratory.ui
import gradio, gradio.component_meta
assert not {"pandas", "pyarrow", "gradio.cli", "gradio.external"} & sys.modules.keys()
assert gradio.component_meta.create_or_modify_pyi.__module__ == "loratory.ui"
with gradio.Blocks():
    button = gradio.Button("press")
    button.click(lambda: None)
import pandas
assert pandas.DataFrame({"a": [1]}).size == 1
print("fine", button.value)
"""

PAGE = """
import functools, json, re, sys, urllib.request
from pathlib import Path
if sys.argv[2] == "gradio alone":
    import fastapi.utils, gradio, gradio.blocks, gradio.routes
    refuses_old_models = fastapi.utils.annotation_is_pydantic_v1
    import loratory.ui.gradio_internals as internals
    gradio.blocks.App = gradio.routes.App
    del gradio.components.base.dir
    gradio.utils.get_type_hints = gradio.utils.get_type_hints._work_out
    fastapi.utils.annotation_is_pydantic_v1 = refuses_old_models
    class Patient(gradio.Blocks):  # without a look at the page for which a busy machine has three seconds
        launch = functools.partialmethod(gradio.Blocks.launch, _frontend=False, i18n=internals.SPOKEN)
        def __init__(self, **options):
            super().__init__(**options)
            internals._leave_no_event_out(self.default_config)  # what a page does, not how fast it starts
    internals.Blocks = Patient
from tests.fake_services import fake_services
from loratory.ui.serve import launch
services = fake_services(Path(sys.argv[1]), seconds_per_step=0.001)
blocks = launch(services, "127.0.0.1", None)
blocks.app_id = blocks.config["app_id"] = 1
ask = urllib.request.Request(blocks.local_url, headers={"Host": f"localhost:{blocks.server_port}"})
page = urllib.request.urlopen(ask).read().decode().replace(f":{blocks.server_port}", "")
page = re.sub("0x[0-9a-f]+", "", page)  # of functions that Gradio writes as text
def routes_of(routes):  # one that FastAPI includes has a router of its own
    for route in routes:
        if hasattr(route, "original_router"):
            yield from routes_of(route.original_router.routes)
        else:
            yield f"{sorted(getattr(route, 'methods', None) or ())} {route.path}"
routes = sorted(routes_of(blocks.app.routes))
unused = ("pandas", "pyarrow", "torch", "transformers", "datasets", "huggingface_hub.inference", "pydantic.v1")
print(json.dumps({"page": page, "routes": routes, "loaded": sorted(set(unused) & sys.modules.keys())}))
blocks.close(verbose=False)
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip().splitlines()[-1]


def test_gradio_is_imported_without_stubs_and_pandas_but_with_events():
    assert run(IMPORTS) == "fine press"


@pytest.fixture
def page_of(tmp_path):
    def open_page(kind: str) -> dict:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        return json.loads(run(PAGE, str(home), kind))

    return open_page


@pytest.mark.e2e
def test_the_first_answer_is_that_of_gradio_alone_with_less_imported(page_of):
    ours, of_gradio = page_of("as it starts"), page_of("gradio alone")

    parts = zip_longest(ours["page"].split(","), of_gradio["page"].split(","))
    assert [pair for pair in parts if pair[0] != pair[1]][:5] == []  # pytest would compare pages for half an hour
    assert len(ours["routes"]) > 60
    assert ours["routes"] == of_gradio["routes"]
    assert ours["loaded"] == []
    assert {"pandas", "pyarrow", "pydantic.v1"} <= set(of_gradio["loaded"])
