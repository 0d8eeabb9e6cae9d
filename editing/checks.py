"""What is checked, and what is warned of, before a run's first model call."""
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from ..host.batch import repeat_to_batch_size
from ..host.canvas import concerning, log
from ..host.hooks import hooks_of, known_hooks, require_changeable
from ..host.network import knows_places
from ..host.options import compiled
from ..host.sampling import Solver, adds_noise, digest
from ..inversion.method import method_of
from ..inversion.trajectory import Inversion
from .editor import Editor, overrides

if TYPE_CHECKING:
    from .run import Run

OFF_PATH = 1e-3  # of its norm; a latent that near is the source's
BEGUN = 0.15     # of the schedule; of few steps the first may stand later


def inversions_of(chosen: Iterable[Editor]) -> list[Inversion]:
    """The distinct INVERSIONs that some editors hold."""
    held = [e.read_inversion() for e in chosen]
    return list({id(inversion): inversion for inversion in held if inversion is not None}.values())


def inversions_read(chosen: Iterable[Editor]) -> list[Inversion]:
    """The distinct INVERSIONs whose features some editor may read."""
    return inversions_of(e for e in chosen if overrides(e, "reads"))


def require_rows(run: "Run", count: int, name: str, what: str = "masks"):
    """ValueError where the rows being sampled cannot take turns at the masks, pictures or prompts of an editor: row i
    has number i mod their count."""
    if run.shape[0] % count:
        raise ValueError(f"{name} has {count} {what}, the latent being sampled {run.shape[0]} rows: the rows must be a "
                         f"multiple of {count} (Repeat Latent Batch).")


def check_finite(latent: Tensor):
    """ValueError on a LATENT that is no picture."""
    bad = int((~latent.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of {latent.numel()} values of the LATENT being sampled are NaN or infinite: connect "
                         "Replay's LATENT, or repair the node that made it.")


def check_hooks(run: "Run", editor: Editor):
    """ValueError on hooks that the host would skip silently: it knows those of the guider's prompts, and
    `register_weights` adds those on weights."""
    known = known_hooks(run.guider)
    lost = sorted({type(hook).__name__ for hook in hooks_of(editor.prompts) if hook not in known})
    if lost:
        raise ValueError(f"{editor.name}'s own prompt carries hooks ({', '.join(lost)}) that the host applies to the "
                         "prompts being sampled alone: take them off it. A LoRA's hook may stay.")


def check_run(run: "Run", stepped: Inversion | None):
    """ValueError on what no run can work with. stepped: the INVERSION whose own steps the SAMPLER takes."""
    require_changeable(run.guider)
    replayed = {id(e.read_inversion()) for e in run.editors if e.replays}
    acting = [e for e in run.editors if not e.replays]
    if acting and run.guider.model_options.get("context_handler") is not None:
        raise ValueError("Context windows show the model parts of the latent in turn, the editors on this MODEL "
                         f"({len(acting)}) read it whole: remove the Context Windows node.")
    network = run.guider.inner_model.diffusion_model
    if compiled(run.guider.model_options) and knows_places(network) and any(overrides(e, "install") for e in acting):
        raise ValueError(f"The {type(network).__name__} of this MODEL is compiled (torch.compile) and does not tell "
                         f"which block computes attention, and the editors on it ({len(acting)}) need to know: remove "
                         "TorchCompileModel.")
    for inversion in inversions_of(run.editors):
        if inversion.theta and id(inversion) not in replayed:
            raise ValueError(f"The {inversion.method} INVERSION learned {', '.join(inversion.theta)} and nothing "
                             "applies it: put Replay Inversion on this MODEL and sample with its SAMPLER.")
        recorded = [name for name, theta in inversion.theta.items() if theta.applied_by == "step"]
        if recorded and inversion is not stepped:
            raise ValueError(f"The {inversion.method} INVERSION recorded {', '.join(recorded)} for its own steps, and "
                             "another SAMPLER is connected: connect Replay's SAMPLER.")
        shape = inversion.shape
        if shape is None:
            if inversion in inversions_read(run.editors):
                raise ValueError(f"The {inversion.method} INVERSION holds no trajectory and an editor on this MODEL "
                                 "reads one: invert with a method that keeps it, such as DDIM Invert.")
            continue
        if tuple(shape) != run.shape[1:]:
            raise ValueError(f"The latent being sampled is {list(run.shape[1:])} (channels, height, width), the "
                             f"INVERSION's is {list(shape)}: start from Replay's LATENT, or invert a picture "
                             "of this size.")
        require_rows(run, inversion.batch, "The INVERSION", "pictures")
        inversion.require(run.sigmas)


def warn_of_run(run: "Run", sampler):
    """Warns of what a run can do and its user has hardly meant."""
    acting = [e for e in run.editors if not e.replays]
    for inversion in inversions_of(run.editors):
        inversion.begin_run()
    if acting and getattr(run.guider, "cfg", None) == 0:
        log.warning("CFG 0 samples the negative prompt alone, and the editors on this MODEL (%d) work on the target's: "
                    "raise CFG (papers: 7.5; 1 is without guidance).", len(acting))
    known = inversions_of(e for e in run.editors if not e.lends)
    if known and adds_noise(sampler):
        log.warning("The SAMPLER adds noise of its own: edits work, but reconstruction is not promised (euler adds "
                    "none).")
    target = [e for name in run.edited() for e in run.guider.original_conds[name]]
    own = {digest([i.conditioning[0][0]]) for i in known}
    same = target and all("control" not in e and digest([e.get("cross_attn")]) in own for e in target)
    if acting and same and all(e.follows for e in acting):
        with concerning(acting[-1].node):
            log.warning("The prompt being sampled is the source's own, and the editors on this MODEL (%d) change "
                        "nothing then: connect the target CONDITIONING to the sampler, or rewrite a word of it.",
                        len(acting))


def warn_of_start(stepped: Inversion | None, latent: Tensor, sigma: float):
    """Warns where an INVERSION's own steps begin between two of them, at σ, from a latent that other steps made."""
    if stepped is None or not stepped.level(sigma) or not method_of(stepped).hands_on:
        return
    apart = _apart(latent, stepped, sigma)
    if apart > OFF_PATH:
        log.warning("%s's steps hand on %s, which no LATENT holds: this sampler begins at sigma %.3g without it, from "
                    "a latent %.1f %% off the source's, and gives another picture than one sampler for all steps. Let "
                    "one take them all, or begin from Replay's LATENT.", stepped.method, method_of(stepped).hands_on,
                    sigma, 100 * apart)


def warn_of_memory(run: "Run", sampler, noise: Tensor, latent: Tensor):
    """Warns where a sampler goes on from another one's LATENT, in the middle of the schedule and with no noise of its
    own, and an editor's steps hand on more."""
    sigma = float(run.sigmas[0])
    held = [getattr(sampler, "inversion", None), *inversions_of(run.editors)]
    known = [i for i in held if i and i.latents and i.level(sigma) is not None]
    steps = len(run.sigmas) - 1
    begun = max(BEGUN, 1.2 / steps) if steps > 1 else BEGUN  # leading spacing begins a step below the noisiest level
    if (not run.within(sigma, begun, 1.0) or noise.any() and not isinstance(sampler, Solver)
            or any(i.level(sigma) == 0 or _apart(latent, i, sigma) <= OFF_PATH for i in known)):
        return
    for editor in run.editors:
        if lost := editor.hands_on(run, sigma):
            with concerning(editor.node):
                log.warning("The steps of %s hand on %s, which no LATENT holds: this sampler begins at sigma %.3g "
                            "without it, and gives another picture than one sampler for all steps. Let one take them "
                            "all.",
                            editor.name, lost, sigma)


def _apart(latent, inversion, sigma):
    """How far a latent is from the INVERSION's at σ, as a share of its norm."""
    source = repeat_to_batch_size(inversion.at(sigma), len(latent)).to(latent)
    return (latent - source).norm() / source.norm()


def check_noise(run: "Run", x: Tensor, sigma: float):
    """ValueError on a start without the noise of its level; a warning where it is other noise than the inversion's,
    unless an editor is made for that and nothing is replayed."""
    begun = [i for i in inversions_of(e for e in run.editors if not e.lends) if i.latents]
    known = [repeat_to_batch_size(run.shown(i, sigma), x.shape[0]).to(x) for i in begun]
    apart, noisy = min((((x - z).norm() / z.norm(), z.norm()) for z in known), default=(0, 0))
    if 4 * x.norm() < noisy:
        raise ValueError(f"Sampling starts at sigma {sigma:.3g} from a latent of {100 * x.norm() / noisy:.0f} % of the "
                         "INVERSION's norm there, a picture without its noise: connect Replay's LATENT.")
    if apart > 0.5 and (any(e.replays for e in run.editors) or not any(e.anew for e in run.editors)):
        log.warning("Sampling starts from other noise than the inversion (%.0f %% of its norm apart at sigma %.3g): "
                    "connect Replay's LATENT and SAMPLER, or turn add_noise off.", 100 * apart, sigma)
