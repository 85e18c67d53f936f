"""The lab of a Space, whose people sign in with accounts of a stand-in for Hugging Face."""

import pytest

from tests.ui.front.lab import running_lab
from tests.ui.front.space.stand_in import space_at


@pytest.fixture(scope="module")
def lab(tmp_path_factory, module_institute, throttle):
    def make(origin):
        return space_at(origin, module_institute.issuer, module_institute.trust)

    with running_lab(tmp_path_factory.mktemp("space"), space_at=make, behind_proxy=True) as running:
        yield running
