"""How the host fills a batch."""
from comfy.utils import repeat_to_batch_size

__all__ = ["repeat_to_batch_size"]
