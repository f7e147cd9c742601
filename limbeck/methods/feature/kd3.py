"""KD^3: the reused teacher classifier, learnt on images from the web."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from limbeck.functional.feature_maps import mean_squared_features, pool_to_smaller
from limbeck.functional.web_images import disagreement_weights, normalized_contrast
from limbeck.hyperparameters import Count, NonNegative, Positive
from limbeck.methods.base import Needs, Observers, Setup, register
from limbeck.methods.feature.simkd import ReusedClassifier, SimKD
from limbeck.methods.heads import further_head
from limbeck.methods.projectors import project
from limbeck.signals import Batch, Signals, Terms

MIXED_INPUTS = "mixed_inputs"
_MIXED = "mixed"


@register(
    "kd3",
    title="Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
    authors="Jialiang Tang and Shuo Chen and Gang Niu and Masashi Sugiyama and Chen Gong",
    paper="2307.11469",
    year=2023,
    family="feature",
    equation=r"L = \frac{w}{CHW} \left\| P(f^S) - f^T \right\|_2^2 + \lambda \big( L_{con}(h^S) + L_{con}(h^T) \big),"
    r" \quad w = \sigma\big(\|z^S - z^T\|_2\big)",
)
class KD3(SimKD):
    """As SimKD, with more weight where the models disagree, and embeddings that do not know an image's style.

    Meant for data from elsewhere without labels: ``selection: confident`` chooses samples, the transform
    ``mix_distribution`` adds copies in the style of other images. No label is used. Memory grows with the square
    of the batch.

    Terms:
        feature: weighted mean squared difference of the projected and the teacher's last map.
        contrast: NT-Xent between the student's embeddings of an image and of its copy.
        teacher_contrast: the same of the teacher's embeddings; it trains their head only, as in the authors' code.

    The deployable student is SimKD's. Deviations: the distance of the logits has no epsilon by default.

    Args:
        factor: how many times narrower than the teacher's map the projector's inner maps are.
        mix_weight: weight of both contrasts.
        temperature: of the contrasts.
        embedding: dimensions of the embeddings that are contrasted.
        distance_eps: added to each difference of logits; 1e-6 in the authors' code.
    """

    needs = Needs(
        student={"features.stages", "features.pooled"},
        teacher={"features.stages", "features.pooled"},
        batch={MIXED_INPUTS},
    )
    batch_coupled = True
    batch_memory = "quadratic"

    def __init__(
        self,
        *,
        factor: Count = 2,
        mix_weight: NonNegative = 0.001,
        temperature: Positive = 0.3,
        embedding: Count = 128,
        distance_eps: NonNegative = 0.0,
    ) -> None:
        super().__init__(factor=factor)
        self.temperature, self.embedding, self.distance_eps = temperature, embedding, distance_eps
        self.head: nn.Module = nn.Identity()
        self.teacher_head: nn.Module = nn.Identity()
        self.weights = {"feature": 1.0, "contrast": mix_weight, "teacher_contrast": mix_weight}

    def build(self, setup: Setup) -> None:
        """Makes the projector, a frozen copy of the teacher's classifier and both heads."""
        super().build(setup)
        self.head = further_head(setup, self.embedding, "kd3/student")
        seen_as_student = replace(setup, signals={"student": setup.signals["teacher"]})
        self.teacher_head = further_head(seen_as_student, self.embedding, "kd3/teacher")

    def observe(self, batch: Batch, observers: Observers) -> dict[str, Signals]:
        """Shows both models the images and their copies in another style."""
        kept = {key: value for key, value in batch.items() if not key.endswith("_inputs")}
        mixed = Batch(kept, inputs=batch[MIXED_INPUTS])
        return {
            role: replace(observers[role](batch), views={_MIXED: observers[role](mixed)})
            for role in ("teacher", "student")
        }

    def forward(self, batch: Batch, student: Signals, teacher: Signals) -> Terms:
        """Returns ``feature``, ``contrast`` and ``teacher_contrast``."""
        return {
            "feature": self._features(student.feature("stages"), teacher.feature("stages").detach()),
            "contrast": self._contrast(self.head, student),
            "teacher_contrast": self._contrast(self.teacher_head, teacher.detach()),
        }

    def _features(self, student: Tensor, teacher: Tensor) -> Tensor:
        assert isinstance(self.classifier, ReusedClassifier)
        ours, theirs = pool_to_smaller(student, teacher)
        projected = project(self.classifier.projector, ours)
        # The teacher's logits are those of its whole map, which uneven pooling would change.
        maps = projected.detach(), teacher.to(projected.dtype)
        logits = [self.classifier.head(each.mean((2, 3))) for each in maps]
        weights = disagreement_weights(*logits, eps=self.distance_eps)
        return weights * mean_squared_features(projected, theirs.to(projected.dtype), reduction="none")

    def _contrast(self, head: nn.Module, signals: Signals) -> Tensor:
        views = (signals, signals.views[_MIXED])
        first, second = (project(head, view.feature("pooled").flatten(1)) for view in views)
        return normalized_contrast(first, second, temperature=self.temperature, reduction="none")
