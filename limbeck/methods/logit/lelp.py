"""LELP: linear projections of the teacher's embedding split every class into subclasses for the student to learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.anatomy import head_of
from limbeck.errors import NeedsError
from limbeck.functional.subclasses import (
    SubclassProjections,
    class_log_probabilities,
    fit_subclasses,
    subclass_kl,
    subclass_log_targets,
)
from limbeck.hyperparameters import Count, NonNegative, Positive
from limbeck.methods.base import Method, Needs, Setup, label_loss, register
from limbeck.methods.heads import check_replaceable, further_head, with_classifier
from limbeck.methods.projectors import project
from limbeck.signals import Batch, Signals, Terms


class SubclassHead(nn.Module):
    """Reads features as subclasses and answers with the log-probabilities of classes.

    Args:
        scores: gives ``[B, C * S]``.
        num_classes: number of classes ``C``.
    """

    def __init__(self, scores: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.scores = scores
        self.num_classes = num_classes

    def forward(self, features: Tensor) -> Tensor:
        """Returns ``[B, C]``."""
        return class_log_probabilities(self.scores(features), self.num_classes)


@register(
    "lelp",
    title="Linear Projections of Teacher Embeddings for Few-Class Distillation",
    authors="Noel Loo and Fotis Iliopoulos and Wei Hu and Erik Vee",
    paper="2409.20449",
    year=2024,
    family="logit",
    equation=r"L = \tau^2\,\mathrm{KL}(P \| \mathrm{softmax}(u / \tau)), \quad P_{c,s} = \mathrm{softmax}(t / \tau)_c\,"
    r"\mathrm{softmax}_s(z_c / \beta), \quad z_{c,s} = \langle v_{c,s}, h^T - \mu_c \rangle / r_c",
)
class LELP(Method):
    """With few classes a teacher's probabilities say little; its embedding says how samples of a class differ.

    Before training, the directions of largest variance of the teacher's embeddings are found for each class, without
    those that its classifier reads. The student learns, with a classifier of its own, the probability of each class
    times a softmax over the projections on them. Embeddings of the training data lie in memory while directions are
    fitted: those of each class by the labels, samples without one left out, or by the teacher's predictions where the
    data has no labels.

    Terms:
        lelp: KL divergence over subclasses.

    The deployable student answers with the log-probabilities of the classes, each the sum of its subclasses', and
    leaves its own classifier out. Deviations: no code of the authors was found. The normalisation of the projections,
    the centring of the classifier's weights and the squared temperature are reconstructions.

    Args:
        subclasses: subclasses a class. More serve when classes hold many kinds of samples; no published value is known.
            Where the embeddings of a class vary in fewer directions, the rest of its subclasses tell nothing apart.
        sharpness: temperature of the softmax over projections.
        temperature: temperature of the classes, of teacher and student.
        alpha: weight of a further term ``ce``, the cross-entropy of the summed probabilities with the labels; without
            weight, as the authors have it, there is no such term.
        null_space: whether to leave out the directions that the teacher's classifier reads, for which the teacher must
            be a live model.
        rotate: whether to mix the directions by a random rotation from the run's seed.
    """

    semi_supervised = True
    extends_student = True
    means: Tensor
    directions: Tensor
    scale: Tensor
    rotation: Tensor

    def __init__(
        self,
        *,
        subclasses: Count = 3,
        sharpness: Positive = 1.0,
        temperature: Positive = 1.0,
        alpha: NonNegative = 0.0,
        null_space: bool = True,
        rotate: bool = True,
    ) -> None:
        super().__init__()
        self.subclasses, self.sharpness, self.temperature = subclasses, sharpness, temperature
        self.null_space, self.rotate = null_space, rotate
        labels = {"labels"} if alpha > 0 else set()
        self.needs = Needs(student={"logits", "features.pooled"}, teacher={"logits", "features.pooled"}, batch=labels)
        self.weights = {"lelp": 1.0, **({"ce": alpha} if alpha > 0 else {})}
        self.head: nn.Module = nn.Identity()
        self._classifier: Tensor | None = None

    def build(self, setup: Setup) -> None:
        """Makes the student's classifier over subclasses.

        Raises:
            NeedsError: the student's classifier cannot be exchanged, or the teacher's cannot be read.
        """
        check_replaceable(setup, "lelp")
        logits, embedding = setup.signals["teacher"].logits, setup.signals["teacher"].feature("pooled").flatten(1)
        assert logits is not None
        shape = (logits.shape[1], self.subclasses, embedding.shape[1])
        self.head = further_head(setup, shape[0] * shape[1], "lelp")
        self.register_buffer("means", embedding.new_zeros(shape[0], shape[2]))
        self.register_buffer("directions", embedding.new_zeros(shape))
        self.register_buffer("scale", embedding.new_ones(shape[0]))
        self.register_buffer("rotation", self._rotation(setup.seed).to(embedding))
        self._classifier = self._weights(setup) if self.null_space else None

    def _rotation(self, seed: int) -> Tensor:
        if not self.rotate:
            return torch.eye(self.subclasses)
        generator = torch.Generator().manual_seed(streams.torch_seed(seed, "lelp rotation"))
        normal = torch.randn(self.subclasses, self.subclasses, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(normal)
        return q * r.diagonal().sign()

    def _weights(self, setup: Setup) -> Tensor:
        teacher = setup.models.get("teacher")
        if teacher is None:
            raise NeedsError(
                "lelp leaves out what the teacher's classifier reads, so the teacher must be a live model; use one, or "
                "set method.null_space to false"
            )
        head = head_of(teacher)
        if not isinstance(head, nn.Linear):
            raise NeedsError(
                f"lelp reads the weights of a linear classifier, but the teacher's is {type(head).__name__}; set "
                "method.null_space to false"
            )
        return head.weight.detach()

    @torch.no_grad()
    def prepare(self, observe_all: Callable[[], Iterator[tuple[Batch, dict[str, Signals]]]]) -> None:
        """Fits means, directions and scales to the teacher's embeddings of the training data.

        Raises:
            NeedsError: the training data has no sample of a class.
        """
        rows, classes = [], []
        for batch, signals in observe_all():
            teacher = signals["teacher"]
            assert teacher.logits is not None
            rows.append(teacher.feature("pooled").flatten(1).to(self.means))
            labels = batch.get("labels", teacher.logits.argmax(1))
            classes.append(labels.argmax(1) if labels.is_floating_point() else labels)
        try:
            found = fit_subclasses(
                torch.cat(rows), torch.cat(classes).to(rows[0].device), num_classes=len(self.means),
                subclasses=self.subclasses, classifier=self._classifier, rotation=self.rotation,
            )  # fmt: skip
        except ValueError as error:
            raise NeedsError(f"lelp: {error}; use training data with samples of every class") from None
        for name, value in found._asdict().items():
            getattr(self, name).copy_(value)
        self._classifier = None

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``lelp``, and ``ce`` where it has a weight."""
        assert teacher.logits is not None
        scores = project(self.head, student.feature("pooled").flatten(1))
        projections = SubclassProjections(self.means, self.directions, self.scale)
        targets = subclass_log_targets(
            teacher.logits, teacher.feature("pooled").flatten(1), projections,
            temperature=self.temperature, sharpness=self.sharpness,
        )  # fmt: skip
        terms: Terms = {"lelp": subclass_kl(scores, targets, temperature=self.temperature, reduction="none")}
        if "ce" in self.weights:
            classes = class_log_probabilities(scores, len(self.means))
            terms["ce"] = label_loss(classes, batch)
        return terms

    def finish(self, student: nn.Module) -> nn.Module:
        """Returns a copy of the student whose classifier reads subclasses and sums them."""
        return with_classifier(student, SubclassHead(self.head, len(self.means)))
