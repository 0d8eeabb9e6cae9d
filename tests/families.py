"""The families of U-Nets that tests are repeated on."""
import pytest

import tiny

FAMILIES = list(tiny.UNETS)
each_family = pytest.mark.parametrize("family", FAMILIES)
