"""Gradio is imported without writing stubs, and works as it does by itself."""

import subprocess
import sys

PROGRAM = """
import sys
finders = list(sys.meta_path)
import ui
import gradio, gradio.component_meta
assert gradio.component_meta.create_or_modify_pyi.__module__ == "ui"
assert not [one for one in sys.meta_path if type(one).__module__ == "ui"], "the finder leaves"
assert [one for one in finders if one not in sys.meta_path] == []
with gradio.Blocks():
    button = gradio.Button("press")
    button.click(lambda: None)
print("fine", button.value)
finders = list(sys.meta_path)
ui.import_without_stubs()
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
