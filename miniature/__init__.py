"""The embedded text-to-image model: its scenes, weights, training and loading."""

CFG = 3.0  # suits it as 7.5 suits SD
SCENE = {"seed": 12, "kind": "colour"}  # what templates and the demo open with
