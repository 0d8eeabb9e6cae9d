"""The host's progress bar, and its Cancel button."""
from comfy.model_management import InterruptProcessingException as Cancelled
from comfy.model_management import throw_exception_if_processing_interrupted as raise_if_cancelled
from comfy.utils import ProgressBar

__all__ = ["Cancelled", "ProgressBar", "raise_if_cancelled"]
