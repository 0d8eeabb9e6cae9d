"""The names under which the pack keeps its own in the host's options, and the run that stands there."""

KEY = "palimpsest"
RUN = "palimpsest.run"


def running(model_options):
    """The Run of these model_options, or None outside one."""
    return model_options.get("transformer_options", {}).get(RUN)
