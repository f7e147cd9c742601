"""What student and teacher are jointly sure of, class by class."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.web_images import confident_samples, teacher_share
from limbeck.hyperparameters import Fraction
from limbeck.selection.epochs import EpochRule, epoch_rule

_PUBLISHED_EPOCHS = 240


@epoch_rule(
    "confident",
    title="Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
    authors="Jialiang Tang and Shuo Chen and Gang Niu and Masashi Sugiyama and Chen Gong",
    paper="2307.11469",
    year=2023,
)
class ConfidentSamples(EpochRule):
    """Shows the samples of a pool that fit the teacher's task (KD^3, https://arxiv.org/abs/2307.11469).

    The logits of both models are mixed, the teacher's at first and the student's alone from the middle of the run on,
    as the published 240 epochs have it. A sample is shown if its confidence exceeds the threshold of its class, which
    is lower for classes that are rarely predicted.

    Args:
        cutoff: threshold of the class that is predicted most.
    """

    def __init__(self, *, cutoff: Fraction = 0.95) -> None:
        super().__init__()
        self.cutoff = cutoff

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        """Returns which samples are shown, and the confidence in each."""
        share = teacher_share(fraction * _PUBLISHED_EPOCHS)
        found = confident_samples(student_logits, teacher_logits, share=share, cutoff=self.cutoff)
        return found.selected, found.confidence
