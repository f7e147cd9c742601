"""Which maps of student and teacher belong together, checked when a stage is built."""

from __future__ import annotations

from torch import Tensor

from limbeck.errors import NeedsError
from limbeck.methods.base import Setup


def feature_maps(setup: Setup, role: str, group: str = "stages") -> tuple[Tensor, ...]:
    """Returns the dry run's maps of a tap group, from shallow to deep.

    Raises:
        NeedsError: a tensor of the group is no map ``[B, C, H, W]``.
    """
    maps = setup.signals[role].features[group]
    paths = setup.taps.get(role, {}).get(group, [])
    for number, tensor in enumerate(maps):
        if tensor.dim() == 4:
            continue
        where = f"'{paths[number]}'" if number < len(paths) else f"number {number + 1} of '{group}'"
        kind = "tokens [batch, tokens, width]" if tensor.dim() == 3 else "no map"
        raise NeedsError(
            f"the method reads feature maps [batch, channels, height, width], but the tap {where} of role '{role}' "
            f"gives {kind} {tuple(tensor.shape)}; tap a module whose output is a map, "
            f"`roles: {{{role}: {{taps: {{{group}: [...]}}}}}}`"
        )
    return maps


def paired_maps(setup: Setup, student: str = "stages", teacher: str = "stages") -> list[tuple[Tensor, Tensor]]:
    """Returns the dry run's maps of student and teacher, stage by stage.

    Args:
        setup: what the method is built from.
        student: tap group of the student.
        teacher: tap group of the teacher.

    Raises:
        NeedsError: the numbers of stages differ, or a tensor is no map; says how to set the taps.
    """
    ours, theirs = feature_maps(setup, "student", student), feature_maps(setup, "teacher", teacher)
    if len(ours) != len(theirs):
        more, group, keep = (
            ("teacher", teacher, len(ours)) if len(theirs) > len(ours) else ("student", student, len(theirs))
        )
        paths = ", ".join(setup.taps.get(more, {}).get(group, [])) or "those the model declares"
        raise NeedsError(
            f"the method matches student and teacher stage by stage, but the student has {len(ours)} and the teacher "
            f"{len(theirs)}; name {keep} taps of the {more}, `roles: {{{more}: {{taps: {{{group}: [...]}}}}}}`. "
            f"It has now: {paths}"
        )
    return list(zip(ours, theirs))
