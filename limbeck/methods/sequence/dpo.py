"""DPO: a preference between two answers, learnt without a reward model."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor

from limbeck.functional.preference import implicit_reward, preference_loss
from limbeck.functional.sequences import sequence_sums
from limbeck.hyperparameters import Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import STUDENT, TOKEN_LOGPROBS, SequenceMethod, token_log_probabilities
from limbeck.signals import Batch, Signals, Term, Terms

Noise = Annotated[float, Ge(0), Lt(0.5)]


@register(
    "dpo",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    authors="Rafael Rafailov and Archit Sharma and Eric Mitchell and Stefano Ermon and Christopher D. Manning and"
    " Chelsea Finn",
    paper="2305.18290",
    year=2023,
    family="policy",
    equation=r"L = -\log\sigma\Big(\beta \log\frac{q(y_w)}{q_{ref}(y_w)} - \beta \log\frac{q(y_l)}{q_{ref}(y_l)}\Big)",
)
class DPO(SequenceMethod):
    """The preferred answer becomes likelier than the rejected one, measured against a reference model.

    It prepares teachers: ADPA and DCKD learn from one that was aligned so. The batch holds a preferred answer, and
    beside it a rejected one: the view ``rejected`` with ``rejected_labels`` and ``rejected_mask``. The role
    ``reference`` is the model as it was, `reference: {from: student}` or the model of an earlier stage; it need only
    score tokens, so a cache or a server will do.

    Terms:
        preference: negative log-likelihood of the preference, of each pair.

    Beside fine-tuning on the preferred answers, `methods: [dpo, sft]`, their likelihood cannot fall with the others'.

    Args:
        beta: how dear the distance from the reference is; 0.01 to 0.5.
        label_smoothing: how often a preference is the wrong way round.
    """

    needs = Needs(
        student={STUDENT},
        reference={TOKEN_LOGPROBS},
        views=("rejected",),
        batch={"labels", "mask", "rejected_labels", "rejected_mask"},
    )

    def __init__(self, *, beta: Positive = 0.1, label_smoothing: Noise = 0.0) -> None:
        super().__init__()
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.weights = {"preference": 1.0}

    def forward(self, batch: Batch, student: Signals, reference: Signals) -> Terms:
        """Returns ``preference``, a value for each pair."""
        labels, mask = batch["rejected_labels"], batch["rejected_mask"]
        chosen = self._reward(student, reference, batch["labels"], batch["mask"])
        rejected = self._reward(student.views["rejected"], reference.views["rejected"], labels, mask)
        values = preference_loss(chosen - rejected, label_smoothing=self.label_smoothing, reduction="none")
        # A pair of which a side has no token prefers nothing.
        return {"preference": Term(values, batch["mask"].bool().any(-1) & mask.bool().any(-1))}

    def _reward(self, student: Signals, reference: Signals, labels: Tensor, mask: Tensor) -> Tensor:
        """Returns what the student says that answers are worth, ``[B]``."""
        log_q = self.label_log_probabilities(student, labels, mask)
        known = token_log_probabilities(reference, labels, mask)
        return implicit_reward(sequence_sums(log_q, mask), sequence_sums(known, mask), beta=self.beta)
