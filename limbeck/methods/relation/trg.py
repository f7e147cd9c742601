"""TRG: relations between the tokens of a whole batch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.divergences import kl
from limbeck.functional.token_graph import (
    TokenGraph,
    context_difference,
    neighbourhood_divergence,
    token_contrast,
    token_graph,
)
from limbeck.functional.tokens import aligned_tokens, sampled_rows
from limbeck.hyperparameters import Count, Positive, WholeNumber
from limbeck.methods.base import FeatureMethod, Needs, Setup, register
from limbeck.methods.projectors import project
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms


@register(
    "trg",
    title="Knowledge Distillation via Token-level Relationship Graph",
    authors="Shuoxi Zhang and Hanpeng Liu and Kun He",
    paper="2306.12442",
    year=2023,
    family="relation",
    equation=r"L = L_{CE} + \lambda L_{KD} + \alpha \| C^S - C^T \|^2"
    r" + \beta\,\mathrm{KL}\big(\sigma(A^T) \| \sigma(A^S)\big)"
    r" - \gamma \log \frac{e^{\cos(g(x^S_i), x^T_i)/\tau}}{\sum_j e^{\cos(g(x^S_i), x^T_j)/\tau}}",
)
class TRG(FeatureMethod):
    """Places of all images of a batch are the nodes of a graph whose structure the student copies.

    A token is one place of a feature map, or a patch token of a transformer; of two grids the finer is pooled to the
    coarser, and class tokens are left out. Some places of each image are sampled, the same for both models.

    Terms:
        ce: cross-entropy with the labels.
        kd: KL divergence from the teacher's tempered probabilities to the student's.
        inner: squared difference of the similarities among the tokens of each image, over all its places.
        local: KL divergence between the neighbourhoods of each sampled token.
        global: contrast of each sampled token with all others: it should be told from them by the teacher's token.

    The temperature of ``global`` falls linearly over the run: from coarse to fine. Work grows with the square of
    the batch size times ``tokens``, and so does memory up to 2,048 tokens; of more, blocks are recomputed for the
    backward pass.

    Deviations: the authors published no code, and the paper's values were not at hand. Which direction ``local`` has,
    which tokens are their own neighbours (none), the scale of the affinities, the temperatures and all weights are
    choices made here; the losses and their sum are theirs. With ``reduction: sum`` the losses of the tokens are added
    up, as the paper writes them, and not averaged.

    Args:
        stage: which stage's tokens, counted from 0; None takes the last.
        tokens: places sampled of each image.
        neighbours: neighbours of each token; one fewer than there are tokens where those are too few.
        bandwidth: of the affinities; None takes each model's own mean squared distance between neighbours.
        local: what a neighbourhood is: ``adjacency``, the softmax over whole rows of the adjacency matrix, or
            ``neighbours``, the softmax of log-affinities over neighbours alone.
        student_first: whether the student's is the first distribution in ``local``.
        start_temperature: temperature of ``global`` at the start.
        end_temperature: temperature of ``global`` at the end.
        temperature: divides both logits in ``kd``.
        reduction: ``mean`` or ``sum`` over the sampled tokens.
    """

    needs = Needs(
        student={"logits", "features.stages"}, teacher={"logits", "features.stages"}, batch={"labels", "index"}
    )
    batch_coupled = True
    batch_memory = "quadratic"
    fraction: Tensor

    def __init__(
        self,
        *,
        stage: WholeNumber | None = None,
        tokens: Count = 8,
        neighbours: Count = 8,
        bandwidth: Positive | None = None,
        local: Literal["adjacency", "neighbours"] = "adjacency",
        student_first: bool = False,
        start_temperature: Positive = 0.5,
        end_temperature: Positive = 0.07,
        temperature: Positive = 4.0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.stage = -1 if stage is None else stage
        self.tokens = tokens
        self.neighbours = neighbours
        self.bandwidth = bandwidth
        self.local: Literal["adjacency", "neighbours"] = local
        self.student_first = student_first
        self.temperatures = (start_temperature, end_temperature)
        self.temperature = temperature
        self.reduction: Literal["mean", "sum"] = reduction
        self.weights = {"ce": 1.0, "kd": 1.0, "inner": 1.0, "local": 0.1, "global": 0.1}
        self.register_buffer("fraction", torch.zeros(()))
        self._seed = 0

    def build(self, setup: Setup) -> None:
        """Makes the projection to the teacher's width.

        Raises:
            RecipeError: a model has no such stage.
            NeedsError: the grids of student and teacher cannot be brought together.
        """
        for role in ("student", "teacher"):
            count = len(setup.signals[role].features["stages"])
            if self.stage >= count:
                raise RecipeError(f"stage = {self.stage}, but the {role} has {count} stages, counted from 0")
        try:
            ours, theirs = self._both(setup.signals["student"], setup.signals["teacher"])
        except ValueError as error:
            raise NeedsError(
                f"trg compares tokens of the same places, but {error}; name taps that give a map or a square grid of "
                "tokens, `roles: {student: {taps: {stages: [...]}}}`"
            ) from None
        self.projection = nn.Linear(ours.shape[2], theirs.shape[2]).to(ours.device)
        self._seed = setup.seed

    def _both(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        ours, theirs = (side.features["stages"][self.stage] for side in (student, teacher))
        return aligned_tokens(ours, theirs)

    def distill(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kd``, ``inner``, ``local`` and ``global``."""
        assert student.logits is not None
        assert teacher.logits is not None
        ours, theirs = self._both(student, teacher)
        nodes = self._sampled(batch, ours.shape[1]).to(ours.device)
        our_nodes, their_nodes = sampled_rows(ours, nodes), sampled_rows(theirs, nodes)
        return {
            "kd": kl(student.logits, teacher.logits, temperature=self.temperature, reduction="none"),
            "inner": context_difference(ours, theirs, reduction="none"),
            "local": neighbourhood_divergence(
                our_nodes,
                their_nodes,
                neighbours=self._neighbours(our_nodes),
                bandwidth=self.bandwidth,
                rows=self.local,
                student_first=self.student_first,
                reduction=self.reduction,
            ),
            "global": token_contrast(
                project(self.projection, our_nodes),
                their_nodes,
                temperature=self.contrast_temperature(),
                reduction=self.reduction,
            ),
        }

    def graph(self, nodes: Tensor) -> TokenGraph:
        """Returns the graph of sampled tokens ``[M, D]``."""
        return token_graph(nodes, neighbours=self._neighbours(nodes), bandwidth=self.bandwidth)

    def _neighbours(self, nodes: Tensor) -> int:
        return min(self.neighbours, len(nodes) - 1)

    def contrast_temperature(self) -> Tensor:
        """Returns the temperature of ``global`` as it is now."""
        start, end = self.temperatures
        return start + (end - start) * self.fraction

    def _sampled(self, batch: Batch, places: int) -> Tensor:
        """Nodes ``[M]`` among all tokens, image after image; ``batch["token_index"]`` replaces them."""
        if "token_index" in batch:
            given: Tensor = batch["token_index"]
            return given
        index, epoch = batch["index"].cpu().numpy(), int(batch.get("epoch", 0))
        words = streams.words(self._seed, "trg tokens", epoch, index, places)
        chosen = np.argsort(words, axis=1, kind="stable")[:, : self.tokens]
        return torch.from_numpy((chosen + places * np.arange(len(index))[:, None]).ravel())

    def after_step(self, progress: Progress) -> None:
        """Remembers how much of the run is done, on which the temperature depends."""
        self.fraction.fill_(progress.fraction)
