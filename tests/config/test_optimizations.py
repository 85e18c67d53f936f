"""Optimizations are switched off by name, and an unknown name is an error."""

import pytest

from engine.config.optimizations import OPTIMIZATIONS, VARIABLE, is_wanted
from engine.errors import ConfigError


@pytest.mark.parametrize("value", ["", " ", ",", "fused_norms", " fused_norms , varlen_attention,"])
def test_what_the_variable_names_is_left_out(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)

    assert [name for name in OPTIMIZATIONS if not is_wanted(name)] == sorted(
        (name.strip() for name in value.split(",") if name.strip()), key=list(OPTIMIZATIONS).index
    )


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fused_norms,fussed_loss")

    with pytest.raises(ConfigError, match=r"fussed_loss is not one of unmasked_rows, .*fused_loss"):
        is_wanted("fused_norms")
