"""CRD: contrast of each sample with many others, from a memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.errors import NeedsError
from limbeck.functional.contrastive import log_partition, memory_scores, noise_contrastive
from limbeck.functional.feature_maps import unit_vectors
from limbeck.hyperparameters import Count, Fraction, NonNegative, Positive
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.projectors import project
from limbeck.methods.relation.contrast_sampling import ContrastSampler
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms


@register(
    "crd",
    title="Contrastive Representation Distillation",
    authors="Yonglong Tian and Dilip Krishnan and Phillip Isola",
    paper="1910.10699",
    year=2020,
    family="relation",
    equation=r"L = L_{CE} - 0.8 \sum_{v \in \{S, T\}} \Big[ \log \frac{h_0}{h_0 + K/N}"
    r" + \sum_{k=1}^K \log \frac{K/N}{h_k + K/N} \Big], \quad h_k = e^{\langle v, m_k \rangle / \tau} / Z",
)
class CRD(FeatureMethod):
    """An embedding of the student's pooled features finds the teacher's embedding of the same sample among many others.

    Both embeddings are trained. Memories hold the last embeddings of every training sample; the student is contrasted
    with the teacher's memory and the teacher with the student's. Memories, normalisers and embeddings are in the
    state of the method; the memories take ``8 * embedding`` bytes a training sample.

    Terms:
        ce: cross-entropy with the labels.
        crd_student: contrast of the student's embeddings with the teacher's memory.
        crd_teacher: contrast of the teacher's embeddings with the student's memory.

    Deviations: negatives are drawn with replacement, where the authors do so only when there are fewer than
    ``negatives``; both estimate the same loss. Computed from logarithms, so that nothing overflows and the authors'
    1e-7 in the denominators, here ``eps``, is not needed. Memories change after the optimizer's step, not before.

    Args:
        embedding: size of the embeddings.
        negatives: number of negatives for each sample.
        temperature: divides the similarities.
        momentum: part of the old entry that stays in the memory.
        positive: ``exact`` contrasts with the same sample, ``relax`` with a random one of its class.
        eps: added to the denominators.
    """

    needs = Needs(student={"logits", "features.pooled"}, teacher={"features.pooled"}, batch={"labels", "index"})
    batch_coupled = True
    memory_student: Tensor
    memory_teacher: Tensor
    log_z: Tensor

    def __init__(
        self,
        *,
        embedding: Count = 128,
        negatives: Count = 16384,
        temperature: Positive = 0.07,
        momentum: Fraction = 0.5,
        positive: Literal["exact", "relax"] = "exact",
        eps: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.positive: Literal["exact", "relax"] = positive
        self.eps = eps
        self.weights = {"ce": 1.0, "crd_student": 0.8, "crd_teacher": 0.8}
        self._pending: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def build(self, setup: Setup) -> None:
        """Makes the embeddings, the memories and the sampler of negatives.

        Raises:
            NeedsError: the training data has no labels, or all are the same.
        """
        if setup.labels is None:
            raise NeedsError("crd draws negatives of other classes, so it needs training data with labels")
        self._sampler = ContrastSampler(setup.labels.cpu().numpy(), seed=setup.seed)
        pooled = {role: setup.signals[role].feature("pooled").flatten(1) for role in ("student", "teacher")}
        self.embed = nn.ModuleDict(
            {role: nn.Linear(f.shape[1], self.embedding).to(f.device) for role, f in pooled.items()}
        )
        bound = (3 / self.embedding) ** 0.5
        for role, features in pooled.items():
            generator = torch.Generator().manual_seed(streams.torch_seed(setup.seed, f"crd memory {role}"))
            rows = torch.rand(len(setup.labels), self.embedding, generator=generator) * (2 * bound) - bound
            self.register_buffer(f"memory_{role}", rows.to(features.device))
        # Not a number until the first step sets the normalisers, student first.
        self.register_buffer("log_z", torch.full((2,), torch.nan, device=pooled["student"].device))

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``crd_student`` and ``crd_teacher``."""
        ours = unit_vectors(project(self.embed["student"], student.feature("pooled").flatten(1)))
        theirs = unit_vectors(project(self.embed["teacher"], teacher.feature("pooled").flatten(1)))
        contrast = self._contrast(batch).to(ours.device)
        scores = (
            memory_scores(ours, self.memory_teacher, contrast, temperature=self.temperature),
            memory_scores(theirs, self.memory_student, contrast, temperature=self.temperature),
        )
        population = len(self.memory_student)
        fresh = torch.stack([log_partition(s, population=population) for s in scores]).to(self.log_z.dtype)
        log_z = torch.where(torch.isnan(self.log_z), fresh, self.log_z)
        self._pending = (batch["index"], ours.detach(), theirs.detach(), log_z)
        losses = [
            noise_contrastive(s, z, population=population, eps=self.eps, reduction="none")
            for s, z in zip(scores, log_z)
        ]
        return {"crd_student": losses[0], "crd_teacher": losses[1]}

    def _contrast(self, batch: Batch) -> Tensor:
        """Rows of the memories ``[B, 1 + K]``, the positive first; ``batch["contrast_index"]`` replaces them."""
        if "contrast_index" in batch:
            given: Tensor = batch["contrast_index"]
            return given
        index, epoch = batch["index"].cpu().numpy(), int(batch.get("epoch", 0))
        negatives = torch.from_numpy(self._sampler.negatives(epoch, index, self.negatives))
        positives = index if self.positive == "exact" else self._sampler.positives(epoch, index)
        return torch.cat([torch.from_numpy(positives).unsqueeze(1), negatives], dim=1)

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Moves the memories towards the step's embeddings and fixes the normalisers."""
        if self._pending is None:
            return
        index, ours, theirs, log_z = self._pending
        for memory, rows in ((self.memory_student, ours), (self.memory_teacher, theirs)):
            mixed = self.momentum * memory[index] + (1 - self.momentum) * rows.to(memory.dtype)
            memory[index] = unit_vectors(mixed)
        self.log_z.copy_(log_z)
        self._pending = None
