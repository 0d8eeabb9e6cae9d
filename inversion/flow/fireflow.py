"""FireFlow: Fast Inversion of Rectified Flow for Image Semantic Editing. Deng, He, Mei, Wang, Tang, ICML 2025.
arXiv:2412.07517

The explicit midpoint rule asks for v at the start of a step only to find the middle. Where the flow is nearly straight,
the velocity in the middle of the last step serves as well:
    v̂_i = v(X_{i-1} + ½Δt_{i-1}·v̂_{i-1}, t_{i-1} + ½Δt_{i-1}),   v̂_0 = v(X_0, t_0),   (Eq. 10)
    X_{i+1} = X_i + Δt_i·v(X_i + ½Δt_i·v̂_i, t_i + ½Δt_i).                               (Eq. 11 and 12)
That keeps the midpoint rule's order of error at S + 1 evaluations for S steps, RF-Solver's 2S.

Differs from the paper: v at t = 0 is asked at σ = 1e-6 with the latent in double precision. Feature sharing is an
editor's work, not the inversion's.

Checked against: HolmesShuan/FireFlow-Fast-Inversion-of-Rectified-Flow-for-Image-Semantic-Editing@98588a6, both ways
(numbers in tests/data/fireflow.json).
"""
from ..method import Method
from .rf_solver import both_ways

METHOD = Method("FireFlow", "FireFlow Invert", steps=8, scheduler="simple", hands_on="the last velocity",
                **both_ways(reuse=True))
