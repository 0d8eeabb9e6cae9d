"""The families of U-Nets on which tests are repeated."""
import pytest

import tiny

FAMILIES = list(tiny.UNETS)
each_family = pytest.mark.parametrize("family", FAMILIES)
