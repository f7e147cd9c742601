"""What can be said of a student for a teacher without training either: one forward pass of each, at initialisation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.anatomy import anatomy_of, head_of
from limbeck.errors import RecipeError
from limbeck.functional.training_free import (
    activation_pattern_score,
    classifier_gradient,
    relation_score,
    semantic_score,
)
from limbeck.students.cost import cost_of
from limbeck.students.loading import build_model
from limbeck.taps import Taps


@dataclass(frozen=True)
class View:
    """How an untrained network sees a batch.

    Attributes:
        features: ``[B, ...]`` last feature maps before the pooling.
        gradient: ``[K, D]`` gradient of the batch's cross-entropy with respect to the classifier's weight.
    """

    features: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, features: Tensor, pooled: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None) -> View:
        """Returns the view of a network from its last maps, its pooled features and its classifier."""
        return cls(features, classifier_gradient(pooled, labels, weight, bias))


@dataclass(frozen=True)
class Similarity:
    """DisWOT's two scores, at most 0 each.

    Attributes:
        relation: how alike the networks relate samples.
        semantic: how alike they use channels for classes.
    """

    relation: float
    semantic: float


def compare(student: View, teacher: View, *, eps: float = 0.0) -> Similarity:
    """Returns the scores of a student's view against a teacher's of the same batch.

    Args:
        student: what the student sees.
        teacher: what the teacher sees.
        eps: see :func:`limbeck.functional.training_free.class_correlation_distance`.

    Raises:
        RecipeError: the classifiers read vectors of different sizes, or tell different numbers of classes apart.
    """
    if student.gradient.shape != teacher.gradient.shape:
        raise RecipeError(
            f"the student's classifier is {tuple(student.gradient.shape)} and the teacher's "
            f"{tuple(teacher.gradient.shape)} (classes, width); the semantic score compares classifiers of one shape: "
            "fix the student's last width to the teacher's, or score by 'relation' alone"
        )
    return Similarity(
        relation_score(student.features, teacher.features).item(),
        semantic_score(student.gradient, teacher.gradient, eps=eps).item(),
    )


class Scorer:
    """Scores students for a teacher on one batch of real images.

    Both networks are drawn anew for each repeat; all students of a repeat meet the same teacher and the same batch.
    The same architecture always gets the same scores.

    Args:
        teacher: the teacher's architecture, as a recipe names a model.
        inputs: ``[B, C, H, W]`` images.
        labels: ``[B]`` their classes.
        num_classes: number of classes.
        repeats: initialisations that a score is the mean of.
        seed: seed of the initialisations.
        terms: scores to compute beside the costs: ``relation``, ``semantic`` and ``activation_patterns``.

    Example:
        >>> scorer = Scorer("resnet8", torch.rand(8, 1, 8, 8), torch.arange(8) % 2, num_classes=2)
        >>> sorted(scorer("resnet14"))
        ['activation_patterns', 'macs', 'parameters', 'relation', 'semantic']
    """

    TERMS = ("relation", "semantic", "activation_patterns")

    def __init__(
        self,
        teacher: str | Mapping[str, Any],
        inputs: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        repeats: int = 1,
        seed: int = 0,
        terms: Sequence[str] = TERMS,
    ) -> None:
        self._inputs, self._labels, self._classes = inputs, labels, num_classes
        self._seed, self._terms = seed, tuple(terms)
        self._costs: dict[str, dict[str, float]] = {}
        self._teachers = [self._look(self._build(teacher, "teacher", r))[0] for r in range(repeats)]

    def __call__(self, student: str | Mapping[str, Any]) -> dict[str, float]:
        """Returns the scores of a student, and its ``parameters`` and ``macs`` for one sample."""
        cost = self.cost(student)
        found: list[dict[str, float]] = []
        for repeat, teacher in enumerate(self._teachers):
            view, patterns = self._look(self._build(student, "student", repeat))
            scores = {"activation_patterns": patterns}
            if "semantic" in self._terms:
                scores |= vars(compare(view, teacher))
            elif "relation" in self._terms:
                scores["relation"] = relation_score(view.features, teacher.features).item()
            found.append(scores)
        means = {term: sum(scores[term] for scores in found) / len(found) for term in self._terms}
        return {**means, **cost}

    def cost(self, student: str | Mapping[str, Any]) -> dict[str, float]:
        """Returns ``parameters`` and ``macs`` of a student."""
        key = json.dumps(student, sort_keys=True)
        if key not in self._costs:
            cost = cost_of(self._build(student, "student", 0), self._inputs.shape[1:])
            self._costs[key] = {"parameters": cost.parameters, "macs": cost.macs}
        return self._costs[key]

    def _build(self, spec: str | Mapping[str, Any], role: str, repeat: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(streams.torch_seed(self._seed, f"search/{role}", repeat))
            return build_model(spec, num_classes=self._classes, input_shape=self._inputs.shape[1:])

    def _look(self, model: nn.Module) -> tuple[View, float]:
        """Returns what a fresh model says of the batch, with the batch's own normalisation statistics."""
        anatomy = anatomy_of(model)
        if not anatomy.stages or not anatomy.pooled:
            raise RecipeError(
                f"{type(model).__name__} does not say where its last map and its classifier are, which a score reads"
            )
        taps = Taps(model, {"last": anatomy.stages[-1:], "pooled": anatomy.pooled})
        codes = _ActivationCodes(model) if "activation_patterns" in self._terms else None
        taps.listen()
        with torch.no_grad():
            model.train()(self._inputs)
        seen = taps.collect()
        taps.close()
        head: Any = head_of(model)
        view = View.of(seen["last"][0], seen["pooled"][0].flatten(1), self._labels, head.weight, head.bias)
        return View(view.features, view.gradient.detach()), codes.score() if codes is not None else float("nan")


class _ActivationCodes:
    """Collects which units of a network's ReLUs are on, for each sample."""

    def __init__(self, model: nn.Module) -> None:
        self._kernel: Tensor | None = None
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, args: Any, output: Tensor) -> None:
        on = (output > 0).flatten(1).float()
        # Units on in both, and units off in both.
        kernel = on @ on.T + (1 - on) @ (1 - on).T
        self._kernel = kernel if self._kernel is None else self._kernel + kernel

    def score(self) -> float:
        return float("nan") if self._kernel is None else activation_pattern_score(self._kernel).item()
