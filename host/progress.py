"""The host's progress bar, and its Cancel button."""
from collections.abc import Callable
from contextlib import contextmanager

from comfy.model_management import InterruptProcessingException as Cancelled
from comfy.model_management import throw_exception_if_processing_interrupted as raise_if_cancelled
from comfy.utils import ProgressBar

__all__ = ["Cancelled", "ProgressBar", "before_a_cancel", "raise_if_cancelled"]


@contextmanager
def before_a_cancel(act: Callable[[], object]):
    """Acts where the user cancels what goes on inside."""
    try:
        yield
    except Cancelled:
        act()
        raise
