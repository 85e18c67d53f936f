"""Tests that decide never pass for want of what they compare with."""

import pytest

from tests.conftest import reference_data


def test_where_a_change_is_checked_missing_reference_data_is_a_failure(tmp_path):
    absent = tmp_path / "shared"

    with pytest.raises(pytest.fail.Exception, match="CI=true needs it"):
        reference_data(absent, is_required=True)
    with pytest.raises(pytest.skip.Exception):
        reference_data(absent, is_required=False)
    absent.mkdir()
    assert reference_data(absent, is_required=True) == absent
