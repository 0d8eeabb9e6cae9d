"""Fixtures of tests in a browser. Each file opens its own page, `opened`."""
import pytest

from browser import CHROMIUM


@pytest.fixture(scope="module")
def chromium():
    """Skips where there is none."""
    pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")


@pytest.fixture
def view(opened):
    """The page. It must have reported no error by the test's end."""
    opened.errors.clear()
    yield opened
    assert opened.errors == []
