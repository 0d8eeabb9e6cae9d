"""The engine: the run and its editors, reference branch, sites, masks, word maps, replay, and
inverting as plain calls."""
