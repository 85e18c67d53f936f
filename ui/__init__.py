"""The page. Import this package before Gradio: see `gradio_imports`."""

from ui import gradio_imports

gradio_imports.prepare()
