"""The engine: the run and its editors, the reference branch, sites, masks, word maps, replay, and inverting as plain
calls."""
