"""How the page looks: colours, type and spacing, as Gradio theme variables; `style.css` does what these cannot."""

from pathlib import Path

import gradio as gr

STYLESHEETS = tuple(sorted((Path(__file__).parent / "assets").glob("*.css"), reverse=True))  # style.css first

# In the head of a document: a loss that falls, as the icon of the browser's tab; without it browsers ask for a file.
ICON = (
    '<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22 viewBox=%220 0 32 32%22%3E'
    "%3Crect width=%2232%22 height=%2232%22 rx=%227%22 fill=%22%230f6b5c%22/%3E%3Cpath d=%22M8 7c1 11 6 15 17 16%22 "
    'fill=%22none%22 stroke=%22%23faf9f6%22 stroke-width=%224%22 stroke-linecap=%22round%22/%3E%3C/svg%3E">'
)

# Paper, ink and one accent. Every other colour on the page belongs to a chart.
_ACCENT = gr.themes.Color(
    c50="#eef6f4", c100="#d5e9e4", c200="#acd3ca", c300="#7fb9ad", c400="#4f9c8d", c500="#2a8273",
    c600="#0f6b5c", c700="#0c574b", c800="#0a453c", c900="#08362f", c950="#052520", name="verdigris",
)  # fmt: skip
_PAPER = gr.themes.Color(
    c50="#faf9f6", c100="#f3f1ec", c200="#e6e3db", c300="#d3d0c6", c400="#a9a69b", c500="#77746a",
    c600="#5d5b53", c700="#45433d", c800="#2e2d29", c900="#1f1f1c", c950="#171816", name="paper",
)  # fmt: skip
_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def build_theme() -> gr.themes.Base:
    """Return the theme of a laboratory notebook: quiet ground, hairlines, one accent; light and dark."""
    theme = gr.themes.Base(
        primary_hue=_ACCENT,
        secondary_hue=_ACCENT,
        neutral_hue=_PAPER,
        font=_SANS,
        font_mono=_MONO,
        radius_size=gr.themes.sizes.radius_sm,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
    )
    light_and_dark = {
        "body_background_fill": ("#faf9f6", "#171816"),
        "background_fill_primary": ("#faf9f6", "#171816"),
        "background_fill_secondary": ("#f3f1ec", "#1f201d"),
        "body_text_color": ("#1c2321", "#e9e7df"),
        "body_text_color_subdued": ("#5d5b53", "#a9a69b"),
        "border_color_primary": ("#dcdad2", "#33342f"),
        "border_color_accent": ("#0f6b5c", "#7fb9ad"),
        "block_label_text_color": ("#5d5b53", "#a9a69b"),
        "block_title_text_color": ("#33322d", "#d3d0c6"),
        "block_info_text_color": ("#6b685f", "#a09d92"),
        "input_background_fill": ("#ffffff", "#1f201d"),
        "input_background_fill_focus": ("#ffffff", "#1f201d"),
        "input_border_color": ("#d3d0c6", "#3f403a"),
        "input_border_color_focus": ("#0f6b5c", "#7fb9ad"),
        "input_placeholder_color": ("#6f6c62", "#96938a"),
        "input_shadow_focus": ("0 0 0 3px rgba(15,107,92,.16)", "0 0 0 3px rgba(127,185,173,.22)"),
        "button_primary_background_fill": ("#0f6b5c", "#2a8273"),
        "button_primary_background_fill_hover": ("#0c574b", "#237060"),
        "button_primary_border_color": ("#0f6b5c", "#2a8273"),
        "button_primary_text_color": ("#ffffff", "#ffffff"),
        "button_secondary_background_fill_hover": ("#f3f1ec", "#232420"),
        "button_secondary_border_color": ("#cbc8bd", "#45463f"),
        "button_secondary_text_color": ("#1c2321", "#e9e7df"),
        "checkbox_background_color": ("#ffffff", "#1f201d"),
        "checkbox_background_color_selected": ("#0f6b5c", "#4f9c8d"),
        "checkbox_border_color": ("#b9b6ab", "#5d5b53"),
        "checkbox_border_color_selected": ("#0f6b5c", "#4f9c8d"),
        "checkbox_label_background_fill_hover": ("#f3f1ec", "#232420"),
        "checkbox_label_background_fill_selected": ("#eaf1ee", "#20302c"),
        "checkbox_label_border_color": ("#d3d0c6", "#3f403a"),
        "checkbox_label_border_color_selected": ("#0f6b5c", "#4f9c8d"),
        "checkbox_label_text_color_selected": ("#1c2321", "#e9e7df"),
        "slider_color": ("#0f6b5c", "#4f9c8d"),
        "loader_color": ("#0f6b5c", "#7fb9ad"),
        "link_text_color": ("#0f6b5c", "#7fb9ad"),
        "link_text_color_hover": ("#0c574b", "#acd3ca"),
        "error_background_fill": ("#fbeeea", "#33211c"),
        "error_border_color": ("#d9a08f", "#7a4335"),
        "error_text_color": ("#8f2d14", "#f0b4a2"),
    }
    clear = (
        "block_background_fill", "block_border_color", "block_label_background_fill", "block_title_background_fill",
        "panel_background_fill", "button_secondary_background_fill", "checkbox_label_background_fill",
    )  # fmt: skip
    without_edge = ("block_border_width", "block_padding", "block_label_border_width", "panel_border_width")
    values = {name: light for name, (light, _) in light_and_dark.items()}
    values |= {f"{name}_dark": dark for name, (_, dark) in light_and_dark.items()}
    values |= {f"{name}{mode}": "transparent" for name in clear for mode in ("", "_dark")}
    values |= dict.fromkeys(without_edge, "0px")
    values |= {
        "block_label_padding": "0 0 4px 0",
        "block_label_text_weight": "500",
        "block_title_text_weight": "500",
        "input_border_width": "1px",
        "button_large_text_weight": "550",
        "button_large_text_size": "15px",
        "button_small_text_size": "14px",
        "layout_gap": "22px",
    }
    return theme.set(**values)
