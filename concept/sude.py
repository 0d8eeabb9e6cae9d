"""FaceChain-SuDe: Building Derived Class to Inherit Category Attributes for One-shot Subject-Driven Generation. Qiao,
Shang, Liu, Sun, Ji, Chen, CVPR 2024. arXiv:2403.06775

A subject is a special case of its class c, as a derived class is of its base, and should inherit what the class can do:
run, jump, be wet. So what the model makes of the subject must also be what it makes of the class. By its own implicit
classifier p(c | x_{t-1}) ∝ p(x_{t-1} | x_t, c) / p(x_{t-1} | x_t) that is a loss beside the subject's,

    L_sude = 1/(2σ_t²)·(‖x_{t-1} - μ_c‖² - ‖x_{t-1} - μ_∅‖²),    L = L_sub + w_s·τ·L_sude,

where x_{t-1} is what the model steps to under the subject's prompt, μ_c and μ_∅ under the class's and the empty one,
without a gradient. Each is c_1·x̂0 and the same share of x_t, and the authors divide by c_1. τ = 1 until the subject is
as much of its class as the class's own μ_c is, and 0 from then on (truncation).

Differs from the paper: c_1 / σ_t² = √ᾱ_{t-1} / (1 - ᾱ_{t-1}) is taken at t itself, where it is finite down to the
cleanest level. On flow models ᾱ is that of the same share of noise.
Checked against: modelscope/facechain@7bc7119 (Apache-2.0), its loss and truncation on equal predictions.
"""
from dataclasses import dataclass

from ..editing.concepts import SLOT, Objective

WEIGHT = 0.4  # w_s


@dataclass(frozen=True)
class Inheritance(Objective):
    """noun: what * reads as for the class.
    weight: w_s.
    """
    noun: str = ""
    weight: float = WEIGHT

    @property
    def bare(self):
        return not self.noun

    def beside(self, caption):
        return caption.replace(SLOT, self.noun), ""

    def compared(self, found, others, noise):
        of_class, of_none = others

        def apart(one, other):
            return (one - other).square().flatten(1).mean(1)

        gained = apart(found, of_class) - apart(found, of_none)
        kept = gained.detach() > -apart(of_class, of_none)  # τ
        return self.weight * kept * (1 + noise ** 2).sqrt() / (2 * noise ** 2) * gained
