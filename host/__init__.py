"""The one door to ComfyUI."""
