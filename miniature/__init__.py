"""The embedded text-to-image model: scenes, weights, training, loading."""
