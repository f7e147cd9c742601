"""The grid of on-policy distillation: what each cell of it is made of, or why there is nothing in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from limbeck.errors import RecipeError
from limbeck.functional.divergence_registry import Divergence
from limbeck.functional.score_function import is_local, is_of_ratio

Source = Literal["data", "student", "mixed", "teacher"]
Granularity = Literal["token", "sequence"]
Access = Literal["white_box", "scores", "text", "none"]
Part = Literal["dense", "sampled", "whole", "returns", "future", "likelihood", "reward"]
"""What a loss is made of.

``dense``: the divergence of distributions at every token. ``sampled``: its gradient from the drawn tokens. ``whole``:
the gradient of a divergence of whole sequences from the drawn ones. ``returns`` and ``future``: that of reverse KL,
where a token answers for itself and what follows, or only for what follows. ``likelihood``: log-likelihood of the text.
``reward``: policy gradient of a reward.
"""
_FORWARD = ("forward_kl", "cross_entropy")


@dataclass(frozen=True)
class Cell:
    """A cell of the grid.

    Attributes:
        divergence: between teacher and student; None for a reward alone.
        source: who wrote the sequences.
        granularity: whether tokens at given beginnings or whole sequences are compared.
        access: what the teacher tells.
        rewarded: whether a reward takes part.
    """

    divergence: Divergence | None
    source: Source
    granularity: Granularity
    access: Access
    rewarded: bool = False

    def parts(self) -> frozenset[Part]:
        """Returns what the loss of this cell is made of.

        Raises:
            RecipeError: nothing could estimate it; says why, and which cell near it runs.
        """
        if self.rewarded and self.source != "student":
            self._refuse("a reward judges what the student wrote", "source: student")
        found = {
            "white_box": self._white_box,
            "scores": self._scores,
            "text": self._text,
            "none": self._nobody,
        }[self.access]()
        parts: set[Part] = {found}
        if found == "future":
            parts.add("dense")
        if self.rewarded:
            parts.add("reward")
        return frozenset(parts)

    def _white_box(self) -> Part:
        chosen = self._chosen()
        if self.granularity == "token":
            return "dense"
        self._drawn("what is compared are probabilities of whole sequences", "granularity: token")
        if self.source == "teacher" and chosen.name in _FORWARD:
            # The chain rule: forward KL of sequences is the sum of that of tokens along the teacher's own.
            return "dense"
        if self.source == "student" and chosen.name == "reverse_kl":
            return "future"
        return self._of_ratio(chosen)

    def _scores(self) -> Part:
        chosen = self._chosen()
        self._drawn("with the probabilities of single tokens alone a divergence is estimated", "access: white_box")
        if self.granularity == "sequence":
            return "returns" if self.source == "student" and chosen.name == "reverse_kl" else self._of_ratio(chosen)
        if not is_local(chosen):
            self._refuse(
                f"what a token adds to {chosen.name} depends on the other tokens' probabilities, which nobody tells",
                "access: white_box",
            )
        return "sampled"

    def _text(self) -> Part:
        chosen = self._chosen()
        if self.source != "teacher":
            self._refuse("a teacher that gives nothing but text says nothing of a text that is not its own",
                         "source: teacher")  # fmt: skip
        if chosen.name not in _FORWARD:
            self._refuse(
                f"{chosen.name} needs probabilities; text alone has the gradient of forward KL",
                "divergence: forward_kl",
            )
        return "likelihood"

    def _nobody(self) -> Part:
        if self.source == "teacher":
            self._refuse("what a teacher wrote has a teacher", "access: text")
        if self.source == "mixed":
            self._refuse("data wants its likelihood and the student's own text a reward",
                         "source: data, or source: student")  # fmt: skip
        if self.source == "data":
            if self.divergence is None or self.divergence.name not in _FORWARD:
                self._refuse("without a teacher there is only the forward KL from the data itself",
                             "divergence: forward_kl")  # fmt: skip
            return "likelihood"
        if not self.rewarded:
            self._refuse("without a teacher and without a reward nothing says what is right", "reward_weight: 1")
        if self.divergence is not None:
            self._refuse("there is no teacher to diverge from", "divergence: null")
        if self.granularity == "token":
            self._refuse("a reward judges whole sequences", "granularity: sequence")
        return "reward"

    def _chosen(self) -> Divergence:
        if self.divergence is None:
            self._refuse("a teacher is there but no divergence from it", "divergence: reverse_kl, or access: none")
        assert self.divergence is not None
        return self.divergence

    def _drawn(self, why: str, instead: str) -> None:
        """Refuses text that was drawn from neither model."""
        if self.source in ("data", "mixed"):
            self._refuse(f"{why} from samples of the student or of the teacher, and data is neither", instead)

    def _of_ratio(self, chosen: Divergence) -> Part:
        if not is_of_ratio(chosen):
            self._refuse(
                f"{chosen.name} does not depend on the ratio of two probabilities alone, and those of whole sequences "
                "are too small to be told otherwise",
                "granularity: token",
            )
        return "whole"

    def _refuse(self, why: str, instead: str) -> None:
        name = "null" if self.divergence is None else self.divergence.name
        raise RecipeError(
            f"method 'unified_opd' with divergence: {name}, source: {self.source}, granularity: {self.granularity}, "
            f"access: {self.access}: {why}; set {instead}"
        )
