"""KD-AIF: samples count as much as they help on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad

from limbeck.anatomy import anatomy_of, head_of
from limbeck.errors import NeedsError
from limbeck.functional.classification import class_indices, cross_entropy
from limbeck.functional.divergences import kl
from limbeck.functional.influence import (
    WeightForm,
    directional_derivative,
    helpfulness,
    hessian_vector_product,
    influence_weights,
    minimal_residual,
)
from limbeck.hyperparameters import Count, Positive
from limbeck.methods.base import Method, Needs, Observed, Observers, Passes, Setup, register
from limbeck.methods.movable import MovableModel
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals, Terms


class _Seen(NamedTuple):
    """What a pass over training data gathers, in float64."""

    numbers: Tensor
    features: Tensor
    student: Tensor
    teacher: Tensor


@register(
    "kd_aif",
    title="Knowledge Distillation with Adapted Weight",
    authors="Sirong Wu and Xi Luo and Junjie Liu and Yuhui Deng",
    paper="2501.02705",
    year=2025,
    family="logit",
    equation=r"L = \frac1B \sum_b w_b\, T^2\,\mathrm{KL}(p^T_b \| p^S_b),"
    r" \quad w_b = w\big( g_b^\top (H + \lambda I)^{-1} g_{val} \big)",
)
class KDAIF(Method):
    """Weighs each sample of KD by its estimated influence on the student's loss on held-out, labelled samples.

    After every ``every`` epochs, a damped system with the exact Hessian of the mean training loss is solved for the
    gradient of the held-out loss, and each sample's weight follows from how far it would lower the held-out loss.
    Weights start at 1 and are looked up by the sample's number, so order and batches do not matter; they are in the
    state of the method. Wrong teacher outputs lose weight.

    Influence runs through the student's linear classifier, whose Hessian is positive definite and takes one pass over
    the data; or through all of its parameters (``through: all``), where every step of the solver is a pass over the
    data with a second derivative, and the Hessian may be indefinite.

    Terms:
        kd: KL divergence from the teacher's tempered probabilities to the student's, times the sample's weight.

    Deviations: by default influence is that on the classifier's weights, with the features as they are. The authors'
    stochastic estimate of the inverse Hessian, cut after one step in their example, has the opposite sign of their
    other estimate, and their weights then favour harmful samples; here a larger weight always means more helpful. Their
    example measures on test data; here it is data kept out of training, ``data: {holdout: 0.1}``. The factor of the
    squared temperature is the usual one of KD; theirs has none.

    Args:
        temperature: divides both logits before the softmax; the loss is multiplied by its square.
        through: ``head``, the classifier, or ``all`` parameters of the student, in one process.
        form: ``exp_minmax``, between 1/e and e; ``sigmoid`` of standardised scores, between 0 and 1; or ``drop``, 1 for
            helpful samples and 0 for others.
        sharpness: factor of the scaled scores in ``exp_minmax`` and ``sigmoid``.
        every: epochs between two estimates; the first comes after as many.
        damping: added to the diagonal of the Hessian.
        iterations: the most steps of the solver; with ``all``, some tens are affordable.
        tolerance: length of the solver's remainder, relative to that of the held-out gradient, at which it stops.
    """

    needs = Needs(
        student={"logits", "features.pooled"},
        teacher={"logits"},
        batch={"labels", "index"},
        holdout="passes",
    )
    refreshes = True
    sample_weights: Tensor
    helpfulness: Tensor

    def __init__(
        self,
        *,
        temperature: Positive = 7.0,
        through: Literal["head", "all"] = "head",
        form: WeightForm = "exp_minmax",
        sharpness: Positive = 1.0,
        every: Count = 1,
        damping: Positive = 0.01,
        iterations: Count = 1000,
        tolerance: Positive = 1e-12,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.form: WeightForm = form
        self.sharpness = sharpness
        self.every = every
        self.damping = damping
        self.iterations = iterations
        self.tolerance = tolerance
        self.through: Literal["head", "all"] = through
        self.one_process = through == "all"
        self.weights = {"kd": 1.0}
        self._bias = True
        # In a tuple, so that the student is no part of the method's own state.
        self._student: tuple[Any, ...] = ()

    def build(self, setup: Setup) -> None:
        """Makes room for a weight of each training sample.

        Raises:
            NeedsError: the training data has no labels, or the student's classifier is not linear.
        """
        if setup.labels is None:
            raise NeedsError("kd_aif keeps a weight for each training sample, so it needs training data with labels")
        student = setup.models["student"]
        head = head_of(student) if anatomy_of(student).head else None
        if self.through == "head" and not isinstance(head, nn.Linear):
            raise NeedsError(
                f"kd_aif measures influence through a linear classifier, which {type(student).__name__} does not have; "
                "set through: all"
            )
        self._bias = getattr(head, "bias", None) is not None
        place = next(student.parameters()).device
        self.register_buffer("sample_weights", torch.ones(len(setup.labels), device=place))
        self.register_buffer("helpfulness", torch.zeros(len(setup.labels), device=place))

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Runs both roles, and remembers who runs the student with other parameters."""
        self._student = (observers["student"],)
        return super().observe(batch, observers)

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``kd``."""
        assert student.logits is not None
        assert teacher.logits is not None
        rows = kl(student.logits, teacher.logits, temperature=self.temperature, reduction="none")
        return {"kd": self.sample_weights[batch["index"]].to(rows) * rows}

    @torch.no_grad()
    def refresh(self, progress: Progress, passes: Passes) -> None:
        """Estimates every sample's influence with the student as it is, and sets the weights."""
        if progress.epoch % self.every:
            return
        numbers, scores = self._through_head(passes) if self.through == "head" else self._through_all(passes)
        self.helpfulness[numbers] = scores.to(self.helpfulness)
        weights = influence_weights(scores, form=self.form, sharpness=self.sharpness)
        self.sample_weights[numbers] = weights.to(self.sample_weights)

    def _through_head(self, passes: Passes) -> tuple[Tensor, Tensor]:
        """Numbers of the training samples and how much each helps, through the classifier alone."""
        seen = self._gather(passes.training())
        p_s, p_t = (torch.softmax(logits / self.temperature, 1) for logits in (seen.student, seen.teacher))
        scores = helpfulness(
            self.temperature * (p_s - p_t),
            seen.features,
            p_s,
            self._held_out_gradient(passes.holdout()),
            damping=self.damping,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        return seen.numbers, scores

    def _through_all(self, passes: Passes) -> tuple[Tensor, Tensor]:
        """The same through every parameter of the student that trains."""
        student = MovableModel(self._student[0])

        def curvature(vector: Tensor) -> Tensor:
            total, count = torch.zeros_like(vector), 0
            for batch, teacher in _with_teacher(passes.training()):
                loss = self._total_loss(student.logits(batch), teacher)
                found = hessian_vector_product(loss, student.parameters, student.divided(vector))
                total, count = total + student.joined(found), count + batch.size
            return total / count + self.damping * vector

        direction = minimal_residual(
            curvature, self._held_out_slope(student, passes), iterations=self.iterations, tolerance=self.tolerance
        )
        numbers, scores = [], []
        for batch, teacher in _with_teacher(passes.training()):
            run = student.logits(batch)
            moved = directional_derivative(run, student.parameters, student.divided(direction))
            with torch.no_grad():
                p_s, p_t = (torch.softmax(z / self.temperature, 1) for z in (run(*student.parameters), teacher))
            scores.append((self.temperature * (p_s - p_t) * moved).sum(1))
            numbers.append(batch["index"])
        return torch.cat(numbers), torch.cat(scores)

    def _total_loss(self, run: Callable[..., Tensor], teacher: Tensor) -> Callable[..., Tensor]:
        """The summed loss of a batch as a function of the student's parameters."""
        return lambda *parameters: kl(run(*parameters), teacher, temperature=self.temperature, reduction="sum")

    def _held_out_slope(self, student: MovableModel, passes: Passes) -> Tensor:
        """Gradient of the mean cross-entropy of held-out samples in all parameters, as one vector."""
        total, count = torch.zeros(()), 0
        for batch, _ in passes.holdout():
            with torch.enable_grad():
                points = [p.detach().requires_grad_() for p in student.parameters]
                loss = cross_entropy(student.logits(batch)(*points), batch["labels"], reduction="sum")
                slopes = torch.autograd.grad(loss, points, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(points, slopes)]
            joined = student.joined(found)
            total, count = total.to(joined) + joined, count + batch.size
        _check_held_out(count)
        return total / count

    def _gather(self, observed: Observed) -> _Seen:
        parts = [
            (batch["index"], self._read(signals["student"]), signals["student"].logits, signals["teacher"].logits)
            for batch, signals in observed
        ]
        index, *rest = (torch.cat([p for p in column if p is not None]) for column in zip(*parts))
        features, student, teacher = (tensor.double() for tensor in rest)
        return _Seen(index, features, student, teacher)

    def _held_out_gradient(self, observed: Observed) -> Tensor:
        """Gradient ``[C, D]`` of the mean cross-entropy of held-out samples in the classifier's weights."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch, signals in observed:
            logits = signals["student"].logits
            assert logits is not None
            p = torch.softmax(logits.double(), 1)
            residuals = p - one_hot(class_indices(batch["labels"]), p.shape[1])
            total = total.to(p.device) + residuals.T @ self._read(signals["student"]).double()
            count += len(p)
        _check_held_out(count)
        return total / count

    def _read(self, student: Signals) -> Tensor:
        """What the classifier reads, with a column of ones for its bias."""
        features = student.feature("pooled").flatten(1)
        return pad(features, (0, 1), value=1.0) if self._bias else features


def _with_teacher(observed: Observed) -> Iterator[tuple[Batch, Tensor]]:
    """Training batches with the teacher's logits."""
    for batch, signals in observed:
        teacher = signals["teacher"].logits
        assert teacher is not None
        yield batch, teacher


def _check_held_out(count: int) -> None:
    if count == 0:
        raise NeedsError("kd_aif found no held-out samples; keep some out, `data: {holdout: 0.1}`")
