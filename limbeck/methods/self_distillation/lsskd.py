"""LSSKD: one network teaches itself, from stage to stage and from epoch to epoch, on rotated images."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from limbeck.errors import NeedsError
from limbeck.functional.classification import class_indices, cross_entropy
from limbeck.functional.divergences import kl
from limbeck.functional.reduction import widened
from limbeck.functional.self_supervised import joint_labels, rotations, softened_labels
from limbeck.hyperparameters import Fraction, NonNegative, Positive
from limbeck.methods.base import Method, Needs, Observers, Setup, register
from limbeck.methods.self_distillation.auxiliary_branches import AuxiliaryBranch
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms

_Turns = Annotated[int, Ge(2), Le(4)]
_NEVER = -1


@register(
    "lsskd",
    title="A Layered Self-Supervised Knowledge Distillation Framework for Efficient Multimodal Learning on the Edge",
    authors="Tarique Dahri and Zulfiqar Ali Memon and Zhenyu Yu and Mohd. Yamani Idna Idris and Sheheryar Khan and"
    " Sadiq Ahmad and Maged Shoman and Saddam Aziz and Rizwan Qureshi",
    paper="2506.07055",
    year=2025,
    family="self",
    equation=r"L = L_{CE}(z, \tilde y) + \tfrac1L \sum_l L_{CE}(a_l, \tilde\jmath)"
    r" + \tfrac{1}{L-1} \sum_{l<L} \tau^2\,\mathrm{KL}(a_L \| a_l) + w \tfrac1L \sum_l \|\phi_l - \phi\|^2,"
    r" \quad \tilde y = (1 - a) y + a\,\sigma(z^{e-1}/\tau)",
)
class LSSKD(Method):
    """Branches behind every stage learn class and rotation at once, from labels and from the deepest branch.

    Every image is shown in all orientations in one pass. The final head classifies the upright ones; each branch tells
    all pairs of class and rotation. Labels are softened by the network's own predictions of the epoch before, more so
    towards the end. Branches and predictions are left out of the deployed student, which is the plain network.

    Terms:
        task: cross-entropy of the final logits of upright images with their softened labels.
        sad: cross-entropy of each branch with the softened joint labels of class and rotation, the mean of branches.
        layers: KL divergence from the deepest branch's to each other branch's probabilities, the mean of those.
        features: squared distance of each branch's pooled features from the network's own, the mean of branches.

    A batch costs ``orientations`` times a plain one. Predictions of the last epoch take ``2 * (C + 16 * branches * C)``
    bytes a sample for ``C`` classes and four orientations. They are kept by sample, so batches are gathered over
    processes and not split.

    Deviations: the authors published no code, and the paper leaves much open; what is theirs is the kind of the terms.
    Which weights they have, that stages learn from their own earlier predictions one to one, and that features follow
    the network's pooled ones, are choices made here, on what the code of HSAKD, which the paper builds on, does.
    Branches are plain convolutions that follow the shapes of the stages.

    Args:
        temperature: of the divergence between branches, and of the earlier predictions.
        softening: share of the earlier predictions in the labels at the end of the run; grows linearly from 0.
        feature_weight: weight of ``features``.
        orientations: how many quarter turns of each image are shown; 4 are all.
    """

    needs = Needs(student={"logits", "features.stages", "features.pooled"}, batch={"labels", "index"})
    batch_coupled = True
    last_logits: Tensor
    last_joint_logits: Tensor
    last_epoch: Tensor
    epoch: Tensor
    share: Tensor

    def __init__(
        self,
        *,
        temperature: Positive = 3.0,
        softening: Fraction = 0.8,
        feature_weight: NonNegative = 0.1,
        orientations: _Turns = 4,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.softening = softening
        self.turns = orientations
        self.branches = nn.ModuleList()
        self.weights = {"task": 1.0, "sad": 1.0, "layers": 1.0, "features": feature_weight}
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.register_buffer("share", torch.zeros((), dtype=torch.float64))
        self._pending: tuple[Tensor, Tensor, Tensor] | None = None

    def build(self, setup: Setup) -> None:
        """Makes the branches and the memory of predictions.

        Raises:
            NeedsError: the training data has no labels, the student has one stage, or a stage is no grid.
        """
        said = setup.signals["student"]
        features, pooled, logits = said.features["stages"], said.feature("pooled").flatten(1), said.logits
        assert logits is not None
        if setup.labels is None:
            raise NeedsError("lsskd remembers predictions of each training sample, so it needs data with labels")
        if len(features) < 2:
            raise NeedsError("lsskd transfers between stages, but the student has one; name more taps of it")
        classes, samples = logits.shape[1], len(setup.labels)
        try:
            self.branches = nn.ModuleList(
                AuxiliaryBranch(features[number:], pooled.shape[1], classes * self.turns)
                for number in range(len(features))
            ).to(logits.device)
        except ValueError as error:
            raise NeedsError(f"lsskd cannot read a stage of the student: {error}") from None
        shape = (samples, len(features), self.turns, classes * self.turns)
        for name, size in (("last_logits", (samples, classes)), ("last_joint_logits", shape)):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float16, device=logits.device))
        self.register_buffer("last_epoch", torch.full((samples,), _NEVER, device=logits.device))

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Runs the student on all orientations of each image: images in order, each with its turns."""
        try:
            turned = rotations(batch.inputs_for("student"), count=self.turns)
        except ValueError as error:
            raise NeedsError(f"lsskd turns images by a right angle: {error}") from None
        return {"student": observers["student"](Batch(inputs=turned, index=batch["index"]))}

    def forward(self, batch: Batch, student: Signals) -> Terms:
        """Returns ``task``, ``sad``, ``layers`` and ``features``."""
        logits = student.logits
        assert logits is not None
        index, labels = batch["index"], class_indices(batch["labels"])
        parts = [branch(stage) for branch, stage in zip(self.branches, student.features["stages"])]
        features, joint = [part[0] for part in parts], [part[1] for part in parts]
        self._pending = (index, logits.detach()[:: self.turns], torch.stack([j.detach() for j in joint], dim=1))
        return self.losses(index, labels, logits, joint, features, student.feature("pooled").flatten(1))

    def losses(
        self,
        index: Tensor,
        labels: Tensor,
        logits: Tensor,
        joint: list[Tensor],
        features: list[Tensor],
        pooled: Tensor,
    ) -> Terms:
        """Returns the terms of what the final head and the branches say.

        Args:
            index: ``[B]`` numbers of the samples.
            labels: ``[B]`` class indices.
            logits: ``[B * turns, C]`` of the final head.
            joint: ``[B * turns, C * turns]`` of each branch, from shallow to deep.
            features: ``[B * turns, D]`` of each branch.
            pooled: ``[B * turns, D]`` of the network itself.
        """
        share = self._shares(index).to(logits)
        target = softened_labels(labels, self.last_logits[index].to(logits), share=share, temperature=self.temperature)
        earlier = self.last_joint_logits[index].to(logits).transpose(0, 1).flatten(1, 2)
        turned, shares = joint_labels(labels, count=self.turns), share.repeat_interleave(self.turns)
        each = [
            cross_entropy(
                own, softened_labels(turned, before, share=shares, temperature=self.temperature), reduction="none"
            )
            for own, before in zip(joint, earlier)
        ]
        deepest = joint[-1].detach()
        layers = [kl(own, deepest, temperature=self.temperature, reduction="none") for own in joint[:-1]]
        distances = [(widened(own) - widened(pooled.detach())).square().sum(1) for own in features]
        return {
            "task": cross_entropy(logits[:: self.turns], target, reduction="none"),
            **{
                name: self._by_image(values)
                for name, values in (("sad", each), ("layers", layers), ("features", distances))
            },
        }

    def _shares(self, index: Tensor) -> Tensor:
        """Share of the earlier prediction in each label ``[B]``: none where the last epoch left no prediction."""
        known = self.last_epoch[index] == self.epoch - 1
        return torch.where(known, self.share, torch.zeros_like(self.share))

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Remembers the step's predictions and how much of them the labels of the next step hold."""
        if self._pending is not None:
            index, logits, joint = self._pending
            limit = torch.finfo(torch.float16).max
            self.last_logits[index] = logits.clamp(-limit, limit).to(self.last_logits.dtype)
            self.last_joint_logits[index] = (
                joint.unflatten(0, (-1, self.turns))
                .transpose(1, 2)
                .clamp(-limit, limit)
                .to(self.last_joint_logits.dtype)
            )
            self.last_epoch[index] = self.epoch
            self._pending = None
        self.epoch.fill_(progress.epoch)
        self.share.fill_(self.softening * progress.epoch / max(progress.epochs, 1))

    def _by_image(self, losses: list[Tensor]) -> Tensor:
        """The mean over heads and orientations ``[B]``."""
        return torch.stack(losses).mean(0).unflatten(0, (-1, self.turns)).mean(1)
