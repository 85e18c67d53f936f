"""Addresses of the page: which paths are one, and what the page answers there."""

import gradio as gr
import httpx
import pytest

from loratory.engine.errors import DatasetError
from loratory.ui.addresses import parse_address
from loratory.ui.serve import launch
from loratory.ui.tabs.data import DataTab

HTML = {"Accept": "text/html,*/*"}


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("/model", ("model", "")),
        ("/runs/20261130-1", ("runs", "20261130-1")),
        ("/runs/ann/20261130-1", ("runs", "ann/20261130-1")),
        *(
            (path, ("", ""))
            for path in ("", "/", "/config", "/gradio_api/runs", "/runs/a/b/c", "/runs/", "/data//etc", "/data/a\0b")
        ),
    ],
)
def test_a_path_is_an_address_of_a_tab_and_a_name(path, address):
    assert parse_address(path) == address


@pytest.fixture
def page(services):
    app = launch(services, "127.0.0.1", None)
    with httpx.Client(base_url=app.local_url, trust_env=False) as client:
        yield client
    app.close(verbose=False)


def test_a_browser_gets_the_page_at_every_address_with_its_policy(page):
    at_root = page.get("/", headers=HTML)

    for path, base in (
        ("/model", "./"),
        ("/chat/20261130-1", "../"),
        ("/runs/ann/20261130-1", "../../"),
        ("/data/a%20b", "../"),
    ):
        answer = page.get(path, headers=HTML)
        assert answer.status_code == 200
        assert f'<base href="{base}"' in answer.text
        assert answer.text.replace(f'<base href="{base}"', '<base href="./"') == at_root.text
        assert answer.headers["content-security-policy"] == at_root.headers["content-security-policy"]
    for path, headers in (("/nowhere", HTML), ("/runs/a/b/c", HTML), ("/model", {"Accept": "application/json"})):
        assert "gradio_config" not in page.get(path, headers=headers).text


def test_the_dataset_of_an_address_is_a_sample_or_an_upload(laid_out, services):
    tab, uploads = laid_out(DataTab), services.home.uploads
    uploads.mkdir(parents=True, exist_ok=True)
    (uploads / "rows.jsonl").write_text("{}")
    (uploads.parent / "secret.jsonl").write_text("{}")

    def source_of(path: str, current: str = "") -> str | None:
        return tab.take_address(gr.EventData(None, {"pick": path}), current).get("dataset", {}).get("source")

    assert source_of("/data/lab-chats") == "sample:lab-chats"
    assert source_of("/data/rows.jsonl") == str(uploads / "rows.jsonl")
    assert source_of("/data/lab-chats", "sample:lab-chats") is None, "what is open already keeps its settings"
    for path in ("/data", "/train", "follow:20261130-1"):
        assert source_of(path) is None
    for name in ("nowhere", "..", "../secret.jsonl", ".", "secret.jsonl"):
        with pytest.raises((DatasetError, gr.Error), match="no sample or upload"):
            source_of(f"/data/{name}")
