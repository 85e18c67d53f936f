"""Labs whose people sign in with an account of an institute."""

import pytest

from loratory.engine.accounts.identities import Identity
from loratory.engine.accounts.oidc import Provider
from tests.ui.front.lab import running_lab
from tests.ui.front.oidc.rounds import RULE, identities, settings_of
from tests.ui.front.space.stand_in import space_at


@pytest.fixture(scope="module")
def lab(tmp_path_factory, module_institute, throttle):
    def provider_at(origin):
        return Provider(settings_of(module_institute), origin, module_institute.trust)

    with running_lab(tmp_path_factory.mktemp("lab"), provider_at=provider_at) as running:
        running.add("root", "admin")
        running.add("ann")
        identities(running).link(running.accounts.person("ann"), Identity(module_institute.issuer, "4711"))
        yield running


@pytest.fixture(scope="module")
def space_lab(tmp_path_factory, module_institute, throttle):
    """Serve the lab of a Space, whose creator is the same person of the institute."""

    def space(origin):
        return space_at(origin, module_institute.issuer, module_institute.trust, creator="4711")

    with running_lab(tmp_path_factory.mktemp("space"), space_at=space) as running:
        yield running


@pytest.fixture(scope="module")
def open_lab(tmp_path_factory, module_institute, throttle):
    """One that lets in verified addresses of example.edu in the group gpu-lab."""

    def provider_at(origin):
        return Provider(settings_of(module_institute, members=RULE), origin, module_institute.trust)

    with running_lab(tmp_path_factory.mktemp("open"), provider_at=provider_at) as running:
        running.add("root", "admin")
        yield running
