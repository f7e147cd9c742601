"""A growing ensemble of small students, any first part of which is a model.

References:
    Medina, Hadachi, Honeine and Bensrhair, Mamba base PKD for efficient knowledge compression, 2025,
    https://arxiv.org/abs/2503.01727
    Dennis et al., Progressive Ensemble Distillation, NeurIPS 2023, https://arxiv.org/abs/2302.10093
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.functional.selective_scan import combined_logits
from limbeck.hyperparameters import Count
from limbeck.students.base import register
from limbeck.students.mamba import MambaClassifier


class ProgressiveEnsemble(nn.Module):
    """Members whose logits are added up, or averaged, one after the other.

    As built, all members count and all are trained. :meth:`grow` makes the first ``k`` count, of which only the last is
    trained: those before are in eval mode, and no gradient reaches them. How far it has grown is part of its state.

    Args:
        members: classifiers of the same classes, in the order in which they join.
        combine: ``sum``, with which each member mends what those before left over, or ``mean``.
    """

    def __init__(self, members: Sequence[nn.Module], combine: Literal["sum", "mean"] = "sum") -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.combine = combine
        self.grown: Tensor
        self.register_buffer("grown", torch.tensor([len(members), 0]))
        self._active, self._frozen = len(members), 0

    def grow(self, active: int) -> None:
        """Makes the first ``active`` members count and trains the last of them.

        Raises:
            RecipeError: there are not so many members.
        """
        if not 1 <= active <= len(self.members):
            raise RecipeError(f"an ensemble of {len(self.members)} members cannot grow to {active}")
        self.grown.copy_(torch.tensor([active, active - 1]))
        self._follow_state()

    def prefix(self, count: int) -> ProgressiveEnsemble:
        """Returns the first ``count`` members as an ensemble of their own, to be evaluated or exported."""
        if not 1 <= count <= len(self.members):
            raise RecipeError(f"an ensemble of {len(self.members)} members has no first {count}")
        return ProgressiveEnsemble([copy.deepcopy(m) for m in self.members[:count]], self.combine).eval()

    def train(self, mode: bool = True) -> ProgressiveEnsemble:
        """Sets the mode of all members but the frozen ones, which stay in eval mode."""
        super().train(mode)
        for member in self.members[: self._frozen]:
            member.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the ensemble's logits."""
        with torch.no_grad():
            frozen = [member(inputs) for member in self.members[: self._frozen]]
        live = [member(inputs) for member in self.members[self._frozen : self._active]]
        if len(live) == 1:
            before = torch.stack(frozen) if frozen else live[0].new_zeros(0, *live[0].shape)
            return combined_logits(before, live[0], combine=self.combine)
        total = torch.stack(live).sum(0)
        return total if self.combine == "sum" else total / len(live)

    def _follow_state(self) -> None:
        self._active, self._frozen = (int(n) for n in self.grown)
        self.train(self.training)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.grown.device.type != "meta":
            self._follow_state()


@register(
    "mamba_ensemble",
    title="Mamba base PKD for efficient knowledge compression",
    authors="José Medina and Amnir Hadachi and Paul Honeine and Abdelaziz Bensrhair",
    paper="2503.01727",
    year=2025,
)
def mamba_ensemble(
    *,
    num_classes: Count,
    in_channels: Count = 3,
    image_size: tuple[int, int] = (32, 32),
    patch_size: Count = 4,
    dims: tuple[Count, ...] = (8, 12, 16, 24, 32),
    depth: Count = 1,
    state: Count = 4,
    combine: Literal["sum", "mean"] = "sum",
) -> nn.Module:
    """Returns a growing ensemble of single-stage Mamba classifiers, one of each width in ``dims``.

    Every classifier's last layer starts at zero, so a member that joins changes nothing before it has learnt.
    """
    members = []
    for dim in dims:
        member = MambaClassifier(
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            patch_size=(patch_size, patch_size),
            dim=dim,
            depth=depth,
            state=state,
        )
        nn.init.zeros_(member.head.weight)
        nn.init.zeros_(member.head.bias)
        members.append(member)
    return ProgressiveEnsemble(members, combine)
