"""The engine: a run and its editors, the reference branch, sites of attention, edits of other modules, predictions that
editors ask for, masks, words' maps, losses on attention, moves of the latent; inverting, learning and replaying as
plain calls.

Its words, each with one meaning:
    run         one sampling of an edited MODEL (run.py)
    σ, level    a value of the schedule
    percent     a part of the whole schedule, as the host counts it (`percent_to_sigma`)
    site        where attention is computed; it has an address, which is the host's name of it, and a grid (sites.py)
    resolution  a grid's side over the latent's: 1, 1/2, 1/4 …
    layer       one self-attention in the notation that nodes take, such as u0.4 (layers.py)
    cell        one item of a latent or of a grid
    area        a part of a latent, (height, width, y, x) in cells
    position    a token's number in a prompt
    role        whose rows they are: "target", "null" or "other"
    part        the rows of one role and prompt in a forward (call.py)
    Source      what the source shows where the target is edited
"""
