"""The embedded text-to-image model: its scenes, weights, training and loading."""
