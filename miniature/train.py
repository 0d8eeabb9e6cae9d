"""Trains the miniature: autoencoder, reader, then U-Net with text encoder. Draws the loss curve and a sample grid.

    python tools/dev.py train [--minutes 150] [--start] [--channels 4] [--rich] [--flow] [--work FOLDER] [--out FOLDER]

On a CPU, two workers of one thread each share a batch, in bfloat16. On a GPU there is one worker. Unfinished work is
kept in `training/work/`, and a second call continues it. `--start` begins from the shipped weights instead of from
nothing, where their shapes fit. `--channels` sets those of the latent. `--rich` trains on scenes with light and looks.
`--flow` trains the flow model on the shipped autoencoder's latents (train_flow.py).
"""
from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from comfy.model_management import get_torch_device
from safetensors.torch import load_file, save_file

from . import scenes
from .hard import rich_scene
from .networks import CHANNELS, READER_HEADS, Autoencoder, ReaderNet, TextEncoder, new_unet

log = logging.getLogger("palimpsest")
HERE = Path(__file__).parent
WEIGHTS, READER = "miniature.safetensors", "reader.safetensors"
SHARES = dict(autoencoder=.13, reader=.10, unet=.77)
SCENES = 60_000


def vocabulary() -> list[int]:
    """Token ids of every word that a caption can use, and of the start and end tokens."""
    from comfy.sd1_clip import SD1Tokenizer
    words = [*scenes.STYLES, *scenes.COLOURS, *scenes.MATERIALS, *scenes.SHAPES, *scenes.GROUNDS, *scenes.POSES]
    rows = SD1Tokenizer().tokenize_with_weights(" ".join(words) + " a of and on background , .")["l"]
    return sorted({t for row in rows for t, _ in row})


def token_rows(captions: list[str], vocab: list[int]) -> torch.Tensor:
    """Captions as rows of the compact vocabulary, (N, 77)."""
    from comfy.sd1_clip import SD1Tokenizer
    tokenizer, row = SD1Tokenizer(), {t: i for i, t in enumerate(vocab)}
    known = {c: [row[t] for t, _ in tokenizer.tokenize_with_weights(c)["l"][0]] for c in set(captions)}
    return torch.tensor([known[c] for c in captions])


def make_scenes(n: int, work: Path, draw=scenes.sample_scene) -> tuple[torch.Tensor, list[scenes.Scene]]:
    """`n` training scenes with their pictures, uint8 (n, 128, 128, 3). They are rendered once and kept in `work`."""
    drawn = [draw(np.random.default_rng(i)) for i in range(n)]
    path = work / f"scenes{n}.npy"
    if not path.exists():
        shape, part = (n, scenes.SIZE, scenes.SIZE, 3), path.with_suffix(".part")
        pictures = np.lib.format.open_memmap(part, "r+" if part.exists() else "w+", np.uint8, shape)
        for i, scene in enumerate(drawn):
            if not pictures[i].any():  # an interrupted call has drawn the first ones
                pictures[i] = np.rint(scenes.render(scene) * 255)
        del pictures  # writes the file and closes it, because Windows renames no mapped file
        path.with_suffix(".part").rename(path)
    return torch.from_numpy(np.load(path, mmap_mode="c")), drawn


def to_input(pictures: torch.Tensor, device="cpu") -> torch.Tensor:
    return pictures.to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.float().clamp(-1, 1).add(1).mul(127.5).permute(0, 2, 3, 1).round().byte()


def _replica(net):
    """A copy that shares parameters and buffers with the network but has its own gradients."""
    twin = copy.deepcopy(net)
    for p, q in zip(_tensors(net), _tensors(twin)):
        q.data = p.data
    return twin


def _tensors(net) -> list[torch.Tensor]:
    return [t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()]


class Fit:
    """Trains one network for a share of the time.

    It uses AdamW, a cosine rate by the time and averaged weights, and can be resumed. On a CPU the time is what each
    worker computes, so that other programs on the machine do not shorten a training.
    """

    def __init__(self, name: str, net, loss, minutes: float, rate: float, work: Path, optimiser=None):
        self.name, self.net, self.loss, self.seconds, self.rate = name, net, loss, minutes * 60, rate
        self.path, self.device = work / f"{name}.pt", next(net.parameters()).device
        self.optimiser = optimiser or torch.optim.AdamW(net.parameters(), rate, betas=(.9, .99), weight_decay=1e-2,
                                                        fused=True)
        self.average = copy.deepcopy(net).requires_grad_(False).eval()
        self.step, self.spent, self.curve = 0, 0., []
        if self.path.exists():
            state = torch.load(self.path, map_location=self.device)
            net.load_state_dict(state["net"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.step, self.spent, self.curve = state["step"], state["spent"], state["curve"]

    def save(self):
        part = self.path.with_suffix(".part")
        torch.save(dict(net=self.net.state_dict(), average=self.average.state_dict(), step=self.step, spent=self.spent,
                        optimiser=self.optimiser.state_dict(), curve=self.curve), part)
        part.replace(self.path)

    def _gradients(self, worker) -> float:
        net, seed = worker
        generator = torch.Generator().manual_seed(hash((self.step, seed)) % 2 ** 31)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss(net, generator)
        net.zero_grad(set_to_none=True)
        loss.backward()
        return float(loss.detach())

    def _update(self, nets):
        grads = [[p.grad for p in n.parameters() if p.requires_grad] for n in nets]
        for other in grads[1:]:
            torch._foreach_add_(grads[0], other)
        torch._foreach_div_(grads[0], len(nets))
        for p, g in zip((p for p in self.net.parameters() if p.requires_grad), grads[0]):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.)
        done = self.spent / self.seconds
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1, (self.step + 1) / 200) * (.51 + .49 * math.cos(math.pi * min(1, done)))
        self.optimiser.step()
        torch._foreach_lerp_(_tensors(self.average), [t.detach() for t in _tensors(self.net)],
                             1 - min(.9985, (self.step + 1) / (self.step + 10)))

    def run(self, every: float = 300):
        """Trains until the time is spent and saves every `every` seconds. Returns the averaged network."""
        count = 1 if self.device.type == "cuda" else 2
        now = time.monotonic if count == 1 else lambda: time.process_time() / count
        nets = [_replica(self.net) for _ in range(count)]
        saved, shown, running = time.monotonic(), time.monotonic() - 60, None
        with ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(1)) as pool:
            while self.spent < self.seconds:
                began = now()
                loss = sum(pool.map(self._gradients, [(n, i) for i, n in enumerate(nets)])) / count
                self._update(nets)
                self.step += 1
                running = loss if running is None else .99 * running + .01 * loss
                self.spent += now() - began
                if time.monotonic() - shown > 60:
                    shown = time.monotonic()
                    self.curve.append((self.step, running))
                    log.info("%s step %d: loss %.4f, %.1f of %.1f minutes", self.name, self.step, running,
                             self.spent / 60, self.seconds / 60)
                if time.monotonic() - saved > every:
                    saved = time.monotonic()
                    self.save()
        self.save()
        return self.average


def autoencoder_loss(pictures: torch.Tensor, batch: int):
    """Absolute, gradient and squared error on crops of 64. A little noise on the latent makes its space smooth."""
    def loss(net, g):
        y, x = torch.randint(0, scenes.SIZE - 63, (2,), generator=g).tolist()
        picked = pictures[torch.randint(0, len(pictures), (batch,), generator=g), y:y + 64, x:x + 64]
        image = to_input(picked, next(net.parameters()).device)
        mean = net.enc(image).float()
        error = net.dec(mean + .05 * torch.randn(mean.shape, generator=g).to(mean)).float() - image
        slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + .5 * slopes + 4 * error.square().mean() + 1e-3 * mean.square().mean()
    return loss


def labels(drawn: list[scenes.Scene]) -> dict[str, torch.Tensor]:
    """Class numbers by reader head. They are -100 (ignored) where a scene does not show the attribute."""
    rows = {head: torch.full((len(drawn),), -100) for head in READER_HEADS}
    for i, scene in enumerate(drawn):
        for head, value in scenes.visible(scene).items():
            rows[head][i] = READER_HEADS[head].index(value)
    return rows


def reader_loss(pictures: torch.Tensor, smeared: torch.Tensor, target: dict, batch: int):
    """Cross-entropy over the heads. Half the pictures come from the autoencoder. All are shifted and get noise."""
    def loss(net, g):
        half = batch // 2
        index = torch.cat([torch.randint(0, len(p), (half,), generator=g) for p in (pictures, smeared)])
        shift = (4 * torch.randint(-2, 3, (2,), generator=g)).tolist()
        image = torch.cat([pictures[index[:half]], smeared[index[half:]]]).roll(shift, (1, 2))
        image = to_input(image, next(net.parameters()).device)
        noise = .03 * torch.rand((batch, 1, 1, 1), generator=g) * torch.randn(image.shape, generator=g)
        logits = net(image + noise.to(image))
        each = [F.cross_entropy(v.float(), target[h][index].to(image.device), ignore_index=-100, reduction="sum",
                                label_smoothing=.02) for h, v in logits.items()]
        return sum(each) / batch
    return loss


def math_attention(_, q, k, v, heads, *args, **kwargs):
    """Plain softmax attention. For small maps on a CPU it trains 1.5 times as fast as the fused kernel."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -.5, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


def denoising_loss(latents: torch.Tensor, rows: torch.Tensor, null: torch.Tensor, batch: int):
    """Eps prediction on SD1.x's schedule with min-SNR weights of 5 (Hang et al. 2023). Drops 10 % of the captions.

    Half of the noise levels come from the middle of the schedule, where shapes form.
    """
    from comfy.ldm.modules.diffusionmodules.util import make_beta_schedule
    alphas = torch.cumprod(1 - torch.as_tensor(make_beta_schedule("linear", 1000, .00085, .012)).double(), 0).float()

    def loss(net, g):
        device = next(net.parameters()).device
        index = torch.randint(0, len(latents), (batch,), generator=g)
        text = torch.where(torch.rand(batch, 1, generator=g) < .1, null, rows[index])
        t = torch.where(torch.rand(batch, generator=g) < .5, torch.randint(0, 1000, (batch,), generator=g),
                        torch.randint(300, 900, (batch,), generator=g))
        a = alphas[t].view(-1, 1, 1, 1).to(device)
        clean = latents[index].float().to(device)
        noise = torch.randn(clean.shape, generator=g).to(device)
        options = {} if device.type == "cuda" else {"optimized_attention_override": math_attention}
        got = net["unet"](a.sqrt() * clean + (1 - a).sqrt() * noise, t.float().to(device),
                          context=net["text"](text.to(device)), transformer_options=options)
        snr = (a / (1 - a)).flatten()
        return ((got.float() - noise).square().mean((1, 2, 3)) * (snr.clamp(max=5) / snr).clamp(min=.05)).mean()
    return loss


@torch.no_grad()
def _through(fn, rows: torch.Tensor, device, batch: int = 64) -> torch.Tensor:
    with torch.autocast(device.type, torch.bfloat16):
        return torch.cat([fn(part.to(device)).cpu() for part in rows.split(batch)])


def kept(path: Path, make) -> torch.Tensor:
    """What `make` returns. It is made once and kept."""
    if not path.exists():
        torch.save(make(), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return torch.load(path)


def encode(ae, pictures, path: Path) -> torch.Tensor:
    """The autoencoder's latents before scaling, kept at `path`. Also sets its mean and deviation of each channel, so
    that scaled latents have variance 1."""
    device = next(ae.parameters()).device
    z = kept(path, lambda: _through(lambda x: ae.enc(to_input(x, device)).float(), pictures, device).half()).float()
    ae.mean.copy_(z.mean((0, 2, 3), keepdim=True))
    ae.std.copy_(z.std((0, 2, 3), keepdim=True))
    return z


def preview(pictures: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """(z + 1, 3): the colours in -1..1 of each channel of the host's latents, and the grey, by least squares."""
    small = to_input(pictures).unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).mean((3, 5)).movedim(1, -1).flatten(0, 2)
    z = latents.movedim(1, -1).flatten(0, 2)
    return torch.linalg.lstsq(torch.cat([z, torch.ones_like(z[:, :1])], 1), small).solution.contiguous()


def fitting(net, state: dict):
    """Loads the weights whose shapes fit."""
    mine = net.state_dict()
    net.load_state_dict({k: v if v.shape == mine[k].shape else mine[k] for k, v in state.items()})
    return net


def shipped(vocab: list[int]) -> dict[str, dict[str, torch.Tensor]]:
    """The shipped weights by network. Words that they do not know start at the mean row."""
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(HERE / WEIGHTS).items()}
    parts = {p: {k[len(p) + 1:]: v for k, v in state.items() if k.startswith(p + ".")} for p in ("ae", "unet", "text")}
    old, table = {int(t): i for i, t in enumerate(state["vocab"])}, parts["text"]["token.weight"]
    parts["text"]["token.weight"] = torch.stack([table[old[t]] if t in old else table.mean(0) for t in vocab])
    return parts


def _half(net) -> dict[str, torch.Tensor]:
    return {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in net.state_dict().items()}


def pack(path: Path, vocab: list[int], ae, net, **others: torch.Tensor):
    """Saves fp16 weights: `ae.*`, `unet.*`, `text.*`, the token ids of the text encoder's rows, and others."""
    parts = {"ae": ae, "unet": net["unet"], "text": net["text"]}
    state = {f"{p}.{k}": v for p, m in parts.items() for k, v in _half(m).items()}
    save_file({**state, "ae.mean": ae.mean.cpu(), "ae.std": ae.std.cpu(), "vocab": torch.tensor(vocab),
               **others}, path)


def train(minutes: float, work: Path, out: Path = HERE, start: bool = False, count: int = SCENES,
          channels: int = CHANNELS, rich: bool = False):
    """Trains on `count` scenes for `minutes` of computing, saves the weights in `out`, returns the U-Net's curve."""
    device = get_torch_device()
    batch, vocab = (128 if device.type == "cuda" else 32), vocabulary()
    work.mkdir(parents=True, exist_ok=True)
    given = shipped(vocab) if start else None
    log.info("rendering %d scenes", count)
    pictures, drawn = make_scenes(count, work, rich_scene if rich else scenes.sample_scene)

    ae = Autoencoder(z=channels).to(device)
    if given:
        fitting(ae, given["ae"])
    ae = Fit("autoencoder", ae, autoencoder_loss(pictures, batch // 2), minutes * SHARES["autoencoder"], 8e-4,
             work).run()

    log.info("encoding %d scenes", count)
    z = encode(ae, pictures, work / "latents.pt")
    smeared = kept(work / "smeared.pt", lambda: _through(lambda z: to_bytes(ae.dec(z)), z[:20_000], device))
    reader = Fit("reader", ReaderNet().to(device), reader_loss(pictures, smeared, labels(drawn), batch),
                 minutes * SHARES["reader"], 3e-3, work).run()
    save_file(_half(reader), out / READER)

    net = torch.nn.ModuleDict(dict(unet=new_unet(z=channels), text=TextEncoder(len(vocab)))).to(device)
    if given:
        fitting(net["unet"], given["unet"])
        net["text"].load_state_dict(given["text"])
    rows = token_rows([s.caption() for s in drawn], vocab)
    z = (z - ae.mean.cpu()) / ae.std.cpu()
    loss = denoising_loss(z, rows, token_rows([""], vocab), batch)
    fit = Fit("unet", net, loss, minutes * SHARES["unet"], 7e-4, work)
    format = {} if channels == 4 else {"preview": preview(pictures[:500], z[:500])}  # of 4, the host has SD1.x's
    pack(out / WEIGHTS, vocab, ae, fit.run(), **format)
    return fit.curve


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20 if get_torch_device().type == "cuda" else 150)
    parser.add_argument("--work", type=Path, default=HERE / "training" / "work")
    parser.add_argument("--start", action="store_true", help="start from the shipped weights")
    parser.add_argument("--channels", type=int, default=CHANNELS, help="of the latent")
    parser.add_argument("--rich", action="store_true", help="train on scenes with light and looks")
    parser.add_argument("--flow", action="store_true", help="train the flow model")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the weights")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    if args.flow:
        from .train_flow import train as train_flow
        train_flow(args.minutes, args.work, args.out)
        return
    curve = train(args.minutes, args.work, args.out, args.start, SCENES, args.channels, args.rich)
    from .picture import loss_curve, sample_grid
    (args.out / "training").mkdir(exist_ok=True)
    loss_curve(curve, args.out / "training" / "loss.svg")
    sample_grid(args.out / "training" / "samples.jpg", args.out / WEIGHTS)


if __name__ == "__main__":
    main()
