"""The page starts without what it does not use, and is the page that Gradio makes by itself."""

import json
import subprocess
import sys
from itertools import zip_longest

import pytest

IMPORTS = """
import sys
finders = list(sys.meta_path)
import ui
import gradio, gradio.component_meta
assert gradio.component_meta.create_or_modify_pyi.__module__ == "ui.gradio_imports"
assert not [one for one in sys.meta_path if type(one).__module__.startswith("ui")], "the finder leaves"
assert [one for one in finders if one not in sys.meta_path] == []
with gradio.Blocks():
    button = gradio.Button("press")
    button.click(lambda: None)
from fastapi.openapi.models import Info, OpenAPI
from pydantic import BaseModel
assert not OpenAPI.__pydantic_complete__, "models are built at their first use"
assert OpenAPI(openapi="3.1.0", info=Info(title="Page", version="1"), paths={}).info.title == "Page"
assert BaseModel.model_config == {} and BaseModel.model_rebuild.__module__ == "pydantic.main"
finders = list(sys.meta_path)
ui.gradio_imports.prepare()
assert sys.meta_path == finders
print("fine", button.value)
"""

STOOD_IN_FOR = """
import ui
import gradio, gradio.caching, httpx
import sys
assert not {"pandas", "gradio.cli", "gradio.external", "httpx._main"} & sys.modules.keys()
key = gradio.caching.cache_hash(__import__("pandas").DataFrame({"a": [1]}))
assert key == gradio.caching.cache_hash(gradio.caching.pd.DataFrame({"a": [1]}))
assert key != gradio.caching.cache_hash(gradio.caching.pd.DataFrame({"a": [2]}))
import pandas, pandas.api.types
assert gradio.caching.pd.DataFrame is pandas.DataFrame
httpx.main(["--help"], standalone_mode=False)
assert "httpx._main" in sys.modules
try:
    gradio.load("models/somebody/something", src="nowhere")
except Exception:
    pass
assert gradio.external.load is not gradio.load and "gradio.external" in sys.modules
import gradio.cli.commands.reload
print("imported when used")
"""

PAGE = """
import functools, json, re, sys, urllib.request
from pathlib import Path
if sys.argv[2] == "gradio alone":
    import fastapi.utils, gradio, gradio.blocks, gradio.routes
    refuses_old_models = fastapi.utils.annotation_is_pydantic_v1
    import ui.gradio_internals as internals
    gradio.blocks.App = gradio.routes.App
    del gradio.components.base.dir
    gradio.component_meta.inspect = gradio.utils.inspect
    gradio.utils.get_type_hints = gradio.utils.get_type_hints._work_out
    fastapi.utils.annotation_is_pydantic_v1 = refuses_old_models
    class Patient(gradio.Blocks):  # without a look at the page for which a busy machine has three seconds
        launch = functools.partialmethod(gradio.Blocks.launch, _frontend=False, i18n=internals.SPOKEN)
        def __init__(self, **options):
            super().__init__(**options)
            internals._leave_no_event_out(self.default_config)  # what a page does, not how fast it starts
    internals.Blocks = Patient
from tests.fake_services import fake_services
from ui.serve import launch
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
unused = ("pandas", "pyarrow", "rich", "torch", "transformers", "datasets", "huggingface_hub.inference", "pydantic.v1")
print(json.dumps({"page": page, "routes": routes, "loaded": sorted(set(unused) & sys.modules.keys())}))
blocks.close(verbose=False)
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip().splitlines()[-1]


def test_no_stub_is_written_and_components_have_their_events():
    assert run(IMPORTS) == "fine press"


def test_what_gradio_hardly_uses_is_imported_when_it_is_used():
    assert run(STOOD_IN_FOR) == "imported when used"


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
