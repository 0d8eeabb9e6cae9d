"""One run of learning: what learns, the rows of a step, their loss and its gradient. `learning.py` runs it."""
import copy
import math
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..host.concept_files import encoder_lora_names, lora_names, vectors_of, with_words
from ..host.distilled import reads_guidance
from ..host.gradients import called, unrecorded
from ..host.guiders import calc_cond_batch, encoded
from ..host.layered import transformers
from ..host.progress import before_a_cancel, raise_if_cancelled
from ..host.sampling import prediction_type, sample_euler, schedule
from ..inversion.grid import append_dims
from .concept_maps import Maps, positions
from .concepts import SLOT, NewWord, PromptRows, Theta, WordAt
from .deltas import Deltas, Weights
from .rows import Row, grouped, joined, level, masked, weight
from .word_spaces import WordSpace, apart, edges, entry, in_stages, marks, require_marks, stage_of

TOGETHER = 2 ** 30  # bytes of weights up to which the rows of a step share a forward
CFG = 7.5  # of a look
UNGUIDED = {"guidance": 1.0}  # the strength that guidance-distilled models are told, as they are trained further


class Learner:
    """One run of learning. `begin` is called once the host has loaded the network of its `guider`."""

    guider: Any

    def __init__(self, model, clip, images, trained, prior, batch, seed, norm, objective):
        self.model, self.images, self.trained, self.prior, self.batch = model, images, trained, prior, batch
        self.prediction, self.norm, self.inference = prediction_type(model), norm, torch.is_inference_mode_enabled()
        self.objective, self.frozen = objective, False
        self.maps = Maps(model, objective) if objective and objective.resolution else None
        self.generator = torch.Generator().manual_seed(seed)
        self.words = tuple(one for one in trained if isinstance(one, NewWord))
        self.start = {word.name: word.start(vectors_of(clip, word.like)) for word in self.words}
        self.marks = marks([{key: v.shape for key, v in start.items()} for start in self.start.values()])
        self.clip = with_words(clip, dict(zip(self.start, self.marks)))
        self.prompt = next((one for one in trained if isinstance(one, PromptRows)), None)
        self.rows = self.prompt.start() if self.prompt else torch.empty(0)
        self.recomputed, self.together = False, model.model_size() <= TOGETHER
        self.changes_text = bool(self.words or self.prompt and self.prompt.lr) or any(
            getattr(one, "text_encoder", False) for one in trained)
        self.network, self.encoder = [], []
        self.theta: dict[str, Theta] = {}  # of the words
        self.own: Theta = {}  # of the objective
        spaces = [word for word in self.words if isinstance(word, WordSpace)]
        self.stages = max((word.stages for word in spaces), default=1)
        self.places = transformers(model.model.diffusion_model) if any(word.in_layers for word in spaces) else ()
        self.kept: dict = {}
        self.stand_ins: dict = {}
        for example in images.examples if self.maps else ():  # what lacks is said before a step
            self._positions(example, images.identifier)

    def begin(self, options, state):
        self.options, guider = options, self.guider
        network = dict(guider.inner_model.diffusion_model.named_parameters())
        names = lora_names(self.model)
        leaves = []
        for one in self.trained:
            if isinstance(one, NewWord):
                device = guider.model_patcher.load_device
                start = self.start[one.name]
                theta = {key: v.detach().clone().to(device).requires_grad_(v.requires_grad or key in start)
                         for key, v in one.begin(start, len(self.places), self.generator).items()}
                self.theta[one.name] = theta
                leaves.append([v for v in theta.values() if v.requires_grad])
                continue
            if isinstance(one, PromptRows):
                self.rows = self.rows.clone().to(guider.model_patcher.load_device).requires_grad_(one.lr > 0)
                leaves.append([self.rows] if one.lr else [])
                continue
            taken = {n: w.detach() for n, w in network.items() if n in names and one.takes(n, w)}
            self.network.append(Weights(one, taken, names, self.generator))
            leaves.append(self.network[-1].leaves())
            if one.text_encoder:
                called_as = encoder_lora_names(self.clip)
                inside = dict(self.clip.cond_stage_model.named_parameters())
                taken = {n: inside[n].detach() for n in called_as if n in inside and one.takes_text(inside[n])}
                self.encoder.append(Weights(one, taken, called_as, self.generator))
                leaves[-1] += self.encoder[-1].leaves()
        if self.objective and self.objective.pictures:
            device = guider.model_patcher.load_device
            self.own = {name: v.to(device).requires_grad_() for name, v in self.objective.begin(self.generator).items()}
            leaves.append(list(self.own.values()))
        self.leaves = [t for group in leaves for t in group]
        self.clipped = [t for part in (*self.network, *self.encoder) for t in part.leaves()]
        held = {id(t) for t in self.clipped}
        self.unclipped = [t for t in self.leaves if id(t) not in held]
        groups = [{"params": group, "lr": one.lr, **({"weight_decay": 0.0} if isinstance(one, PromptRows) else {})}
                  for group, one in zip(leaves, [*self.trained, self.objective])]
        fused = all(t.device.type in ("cpu", "cuda") for t in self.leaves)  # one pass in place of six
        self.optimiser = torch.optim.AdamW(groups, fused=fused)
        if state is not None:
            with torch.no_grad():
                for leaf, value in zip(self.leaves, state["theta"], strict=True):
                    leaf.copy_(value)
            self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
            self.generator.set_state(state["generator"].clone())

    def deltas(self) -> Mapping[str, Tensor]:
        """What is added to the network's weights."""
        return Deltas([] if self.frozen else self.network)

    def step(self) -> tuple:
        """One update. Returns (the loss, one row's noisy x, its clean prediction, its σ). Where the loss or its
        gradient is no number, the loss is NaN and there is no update."""
        drawing = self.generator.get_state()
        with before_a_cancel(lambda: self.generator.set_state(drawing)):
            total, shown = self.differentiate(self.drawn(self.images, self.prior))
        with unrecorded():
            norms = [torch.nn.utils.clip_grad_norm_(*part) for part in (
                (self.clipped, self.norm), (self.unclipped, math.inf))]
            if not all(math.isfinite(number) for number in (total, *norms)):
                return math.nan, *shown
            self.optimiser.step()
            self.optimiser.zero_grad()
            if self.objective:
                for name, theta in self.theta.items():
                    for key in theta.keys() & self.start[name].keys():
                        theta[key].copy_(self.objective.settled(theta[key], self.start[name][key].to(theta[key])))
        return total, *shown

    def drawn(self, images, prior) -> list["Row"]:
        """A step's rows of some pictures, and as many of a prior that counts."""
        rows = self._rows(images, self.batch, 1.0, self.objective)
        if prior and prior.weight:
            rows += self._rows(prior.images, self.batch, prior.weight, predicted=prior.predicted)
        return rows

    def differentiate(self, rows) -> tuple:
        """Adds the gradients of some rows. Returns (the loss, what `step` shows of a row)."""
        total, shown = 0.0, ()
        for group in self._groups(rows):
            loss, shown = self._loss(group)
            if loss.requires_grad:  # not where only a word learns and the captions do not have it
                loss.backward()
            total += float(loss.detach())
        return total, shown

    @contextmanager
    def fixed(self):
        """While it lasts the same is drawn each time."""
        drawing, self.generator = self.generator, torch.Generator().manual_seed(0)
        try:
            yield
        finally:
            self.generator = drawing

    def loss_of(self, images, count) -> float:
        """The mean loss of rows that are the same each time."""
        with self.fixed():
            return self.losses(self._rows(images, count, 1.0, self.objective if images is self.images else None))

    def losses(self, rows) -> float:
        return sum(float(self._loss(group)[0]) for group in self._groups(rows))

    def picture(self, caption, steps, cfg=None) -> Tensor:
        """A picture [1,C,…] of a caption, as VAE Decode takes it, of the same noise each time. cfg: as Watch has it."""
        negative = self.objective and self.objective.negative or ""
        if cfg is None:
            cfg = self.objective.scale if negative else 1.0 if reads_guidance(self.model) else CFG
        model, like = self.guider.inner_model, self.images.examples[0].latent[None].float()
        device, sigmas = self.guider.model_patcher.load_device, schedule(self.model, "simple", steps)
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(device)
        none = torch.zeros_like(noise)
        conds = [encoded(self.guider, self.conditioning(text, self.images.identifier), none, none)
                 for text in (caption, negative)]

        def guided(x, sigma, **kwargs):
            raise_if_cancelled()
            shown, null = calc_cond_batch(model, conds, x, sigma, self.options)
            return null + cfg * (shown - null)

        x = model.model_sampling.noise_scaling(sigmas[:1].to(device), noise, torch.zeros_like(noise))
        return model.process_latent_out(sample_euler(guided, x, sigmas.to(device), disable=True)).cpu()

    def _groups(self, rows: list["Row"]) -> list[list["Row"]]:
        """The rows in groups that fit one forward."""
        return grouped(rows, len(rows) if self.together else 1)

    def _rows(self, images, count, share, objective=None, predicted=False) -> list["Row"]:
        """Rows of some pictures, at levels drawn as the model's family was trained."""
        model, device = self.guider.inner_model, self.guider.model_patcher.load_device
        rows = []
        for i in torch.randint(len(images.examples), (count,), generator=self.generator).tolist():
            example = images.examples[i]
            clean = model.process_latent_in(example.latent[None].float().clone())
            sigma = level(model.model_sampling, self.prediction, objective.skew if objective else 0.0, self.generator)
            noise = torch.randn(clean.shape, generator=self.generator).to(device)
            at, clean = torch.tensor([sigma], device=device), clean.to(device)
            x = model.model_sampling.noise_scaling(at, noise, clean)
            entries = [self._entry(example.caption, images.identifier, x, sigma)]
            if predicted or objective and objective.base is not None:
                with self._as_it_was():
                    entries.append(self._entry(example.caption, objective.base if objective else "", x, sigma))
            with torch.no_grad():
                entries += [self._entry(text, "", x, sigma) for text in (
                    objective.beside(example.caption) if objective else ())]
            if objective and objective.negative:
                entries.append(self._entry(example.caption.replace(SLOT, objective.negative), "", x, sigma))
            if objective and objective.pictures:
                entries.append(self._pictured(objective, i, entries[0]))
            masks = torch.stack([m.to(device) for m in example.masks.values()]) if example.masks else None
            words, tokens = self._positions(example, images.identifier) if objective and self.maps else ((), 0)
            contrasts = self._contrasts(objective, example.caption) if objective else ()
            rows.append(Row(x, clean, at, tuple(entries), share / count, objective, predicted, masks, words,
                            tokens, contrasts))
        return rows

    def _pictured(self, objective, number, entry) -> dict:
        """A processed cond entry with what the objective knows of a picture more."""
        prompt = entry["model_conds"]["c_crossattn"]
        shown = objective.pictured(self.own, number, prompt.cond)
        return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": type(prompt)(shown)}}

    def _parted(self, rows, alone, target) -> Tensor:
        """The losses of rows that are shown with and without that."""
        pictured = self._errors(rows, self._predicted(rows, -1, self.options), target)
        # their means, as captions may have unequal numbers of rows
        whole, text = (torch.cat([row.entries[n]["model_conds"]["c_crossattn"].cond.mean(1) for row in rows])
                       for n in (-1, 0))
        return rows[0].objective.parted(pictured, alone, whole, text)

    def _contrasts(self, objective, caption) -> tuple:
        """Of a row, with vectors in the place of known words."""
        return tuple((self.words[0].name if name == SLOT else name, *(vectors_of(self.clip, text) for text in known))
                     for name, *known in objective.contrasts(caption, self.generator))

    def _contrasted(self, row) -> Tensor:
        """What a row's loss is more by its contrasts."""
        total, stage = row.sigma.new_zeros(()), self._stage(float(row.sigma))
        for name, near, far in row.contrasts:
            word = next(word for word in self.words if word.name == name)
            for encoder, v in self._word(word, stage).vectors.items():
                total = total + row.objective.of_word(v.flatten(0, 1), near[encoder].to(v), far[encoder].to(v))
        return total

    def _positions(self, example, identifier) -> tuple:
        """Of the words that the picture's masks show, in its caption, and how many tokens that has."""
        key = example.caption, identifier, *example.masks
        if key not in self.kept:
            text, *words = (self.text(one, identifier) for one in (example.caption, *example.masks))
            self.kept[key] = positions(self.clip, text, words)
        return self.kept[key]

    def _loss(self, rows) -> tuple:
        objective, maps = rows[0].objective, []
        frozen, target = None, torch.cat([row.clean for row in rows])
        if rows[0].predicted or objective and objective.base is not None:
            with self._as_it_was():
                before = self._predicted(rows, 1, self.options)
                frozen = self._errors(rows, before, target)
            target = before if rows[0].predicted else target
        options = self.maps.recorded(self.options, maps) if self.maps and rows[0].words else self.options
        found = self._predicted(rows, 0, options)
        if objective and objective.negative:
            found = objective.guided(found, self._predicted(rows, -1, self.options))
        errors = self._errors(rows, found, target)
        if objective:
            errors = objective.losses(errors, frozen)
            errors = errors + self._compared(rows, found)
            errors = self._parted(rows, errors, target) if objective.pictures else errors
        if self.maps and maps:
            errors = errors + self.maps.losses(rows, maps)
        if rows[0].contrasts:
            errors = errors + torch.stack([self._contrasted(row) for row in rows])
        shares = torch.tensor([row.share for row in rows], device=errors.device)
        return (errors * shares).sum(), (rows[0].x, found[:1].detach(), float(rows[0].sigma))

    def _predicted(self, rows, n, options) -> Tensor:
        """x̂0 under each row's n-th entry."""
        x, sigma = (torch.cat([getattr(row, name) for row in rows]) for name in ("x", "sigma"))
        conds = [[joined([row.entries[n] for row in rows])]]
        return calc_cond_batch(self.guider.inner_model, conds, x, sigma, options)[0].float()

    def _compared(self, rows, found) -> Tensor | float:
        """What rows' losses are more by the texts beside theirs, where masks show it."""
        objective = rows[0].objective
        with torch.no_grad():
            others = [self._predicted(rows, 1 + n, self.options) for n in range(len(objective.beside("")))]
        if not others:
            return 0.0
        shown, sigma = masked(rows, found), torch.cat([row.sigma for row in rows])
        noise = sigma / (1 - sigma) if self.prediction == "flow" else sigma / self._size()
        return objective.compared(shown * found, [shown * other for other in others], noise)

    def _errors(self, rows, found, target) -> Tensor:
        """‖c(σ)·(x̂0 - target)‖² [B], where masks show it."""
        scale = weight(self.prediction, torch.cat([row.sigma for row in rows]), self._size())
        return (append_dims(scale, found) * (masked(rows, found) * (found - target)).square()).flatten(1).mean(1)

    def _size(self) -> float:
        """Of a picture's values, as the network takes them."""
        return float(getattr(self.guider.inner_model.model_sampling, "sigma_data", 1.0))

    @contextmanager
    def _as_it_was(self):
        """While it lasts the model has learned nothing."""
        self.frozen = True
        try:
            with torch.no_grad():
                yield
        finally:
            self.frozen = False

    def _entry(self, caption, identifier, x, sigma) -> dict:
        """The processed cond entry of a caption at σ. While the text changes it serves one row."""
        key = caption, identifier, x.shape, self.frozen
        if self.changes_text and not self.frozen or key not in self.kept:
            like, told = torch.zeros_like(x), self.told(caption, identifier, self._stage(sigma))
            self.kept[key] = encoded(self.guider, [[told[0], {**UNGUIDED, **told[1]}]], like, like)[0]
        return self.kept[key]

    def _stage(self, sigma) -> int:
        return stage_of(self.guider.inner_model.model_sampling, sigma, self.stages)

    def conditioning(self, caption, identifier) -> list:
        """The CONDITIONING of a caption, with what is trained in place of *."""
        return in_stages([self.told(caption, identifier, stage) for stage in range(self.stages)], edges(self.stages))

    def told(self, caption, identifier, stage) -> list:
        """An entry of it, for a stage of sampling."""
        if self.prompt:
            return self.prompt.told(self.rows)[0]
        text, words, places = self.text(caption, identifier), (), ()
        tokens = self.clip.tokenize(text)
        if "embedding:" in text:
            require_marks(text, tokens, dict(zip(self.start, self.marks)))
            words, places = tuple(self._word(word, stage) for word in self.words), () if self.frozen else self.places
        with torch.inference_mode(self.inference):  # the host moves quantised weights again in that mode alone
            self.clip.load_model()
        encoder = [] if self.frozen else self.encoder

        def encode(tokens):
            return called(self.clip.cond_stage_model, self.stand_ins, lambda: Deltas(encoder),
                          self.clip.encode_from_tokens, tokens, return_pooled=True, return_dict=True)

        return entry(self.clip, encode, [tokens] * (len(places) or 1), self.marks, words, places)

    def text(self, caption, identifier) -> str:
        """A caption with what it reads in the place of *."""
        word = identifier
        if self.words and not self.frozen:
            word = self.objective and self.objective.reads or f"embedding:{self.words[0].name}"
        names = [one.name for one in self.words]
        return " ".join(apart(caption.replace(SLOT, f" {word} "), names).split())

    def _word(self, word, stage) -> WordAt:
        if self.frozen or not self.theta:
            return WordAt({encoder: v[None] for encoder, v in self.start[word.name].items()})
        return word.at(self.theta[word.name], stage, self.generator if torch.is_grad_enabled() else None)

    def learned(self) -> tuple:
        words, tables = {}, {}
        for word in self.words:
            if isinstance(word, WordSpace):
                tables[word.name] = word.table(self.theta[word.name], self.places)
            else:
                words[word.name] = {key: v.detach().cpu().clone() for key, v in self.theta[word.name].items()}
        prompt = self.prompt.told(self.rows.detach().cpu()) if self.prompt else None
        weights = {name: value for part in (*self.network, *self.encoder) for name, value in part.saved().items()}
        compact = {name: few for part in (*self.network, *self.encoder) for name, few in part.compact().items()}
        return words, tables, weights, prompt, compact

    def state(self) -> dict:
        """What going on needs."""
        return {"theta": [leaf.detach().cpu().clone() for leaf in self.leaves],
                "optimiser": tree_map_only(Tensor, lambda t: t.detach().to("cpu", copy=True),
                                           self.optimiser.state_dict()),
                "generator": self.generator.get_state()}
