"""Gradio is imported without writing stubs, and works as it does by itself."""

import subprocess
import sys

PROGRAM = """
import sys
from ui.quick_import import import_without_stubs
finders = list(sys.meta_path)
import_without_stubs()
import gradio, gradio.component_meta
assert gradio.component_meta.create_or_modify_pyi.__module__ == "ui.quick_import"
assert sys.meta_path == finders, "the finder leaves when it has done its work"
with gradio.Blocks():
    button = gradio.Button("press")
    button.click(lambda: None)
print("fine", button.value)
import_without_stubs()
assert sys.meta_path == finders
"""


def test_no_stub_is_written_and_components_have_their_events():
    answer = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)

    assert answer.stdout.strip() == "fine press", answer.stderr


def test_the_page_starts_without_the_readers_of_data_formats():
    program = (
        "import ui.build, sys; print({'pyarrow.parquet', 'datasets', 'torch', 'transformers'} & sys.modules.keys())"
    )

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "set()"
