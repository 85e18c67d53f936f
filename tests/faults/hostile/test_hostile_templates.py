"""Chat templates written to stop this program: each is answered soon with its cause, and others notice nothing."""

import re
import shutil
import sys

import pytest

from loratory.engine.errors import ModelLimitError
from tests.faults.hostile.templates import TEMPLATES
from tests.faults.hostile.watched import attack, require_survived

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits are those of Linux"),
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_is_answered_with_its_cause_and_delays_nothing_else(name, target, hostile_model):
    template, text = TEMPLATES[name]
    model = hostile_model(chat_template_jinja=template)

    came = attack(target.inspector, lambda: target.preview(model), target.good_page)

    require_survived(came)
    assert re.search(text, came.message), came.message


@pytest.mark.parametrize("template", ["{{ 'a' * 10**10 }}", "{{ 10 ** (10 ** 9) }}"], ids=["in_python", "in_c"])
def test_a_template_that_overran_is_refused_at_once_until_its_file_changes(template, target, hostile_model):
    model = hostile_model(chat_template_jinja=template)
    with pytest.raises(ModelLimitError, match="hostile-model"):
        target.preview(model)
    target.good_page()
    before = set(target.inspector.pids)

    with pytest.raises(ModelLimitError, match="hostile-model"):
        target.preview(model)
    assert before <= set(target.inspector.pids), "it was tried again, and ended another process"

    shutil.copy(f"{target.good_model.id}/chat_template.jinja", f"{model.id}/chat_template.jinja")
    assert not target.preview(model).strip()


def test_a_template_that_overruns_at_row_57_of_a_check_ends_the_check(target, hostile_model):
    model = hostile_model(
        chat_template_jinja="{% for m in messages %}{% if 'row 057' in m['content'] %}{{ 'a' * 10**10 }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert not target.preview(model).strip()

    came = attack(
        target.inspector, lambda: str(target.inspector.check(target.dataset, model, 64).kept), target.good_page
    )

    require_survived(came)
    assert "The chat template of hostile-model needs more memory" in came.message
