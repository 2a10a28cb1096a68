"""Names that scripts of users still import."""

from __future__ import annotations

import pytest

from nolabel.data import open as opened


def test_open_source_is_found_where_it_was_before():
    from nolabel.data.sources import open_source

    assert open_source is opened.open_source
    with pytest.raises(ImportError):
        from nolabel.data.sources import no_such_name  # noqa: F401
