"""Group by group: whether a model is as good for every patient, speaker or noise level."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limbeck.data.source import groups_of
from limbeck.errors import DataError, RecipeError, suggest
from limbeck.evaluate.base import Results, Subject, evaluations, judged
from limbeck.evaluate.measure import Measure
from limbeck.hyperparameters import Count

_LISTED = 100


@evaluations.register(
    "groups",
    title="Group by group, where the data tells whose a sample is: the worst group and its distance to the mean",
    measures=(
        Measure("groups.worst", "Worst group", "fraction", "higher", "Accuracy on the group that is told worst."),
        Measure("groups.gap", "Group gap", "fraction", "lower", "Mean over groups minus the worst group."),
    ),
)
def groups(subject: Subject, *, by: str | None = None, fewest: Count = 1) -> Results:
    """Returns ``worst``, ``worst_group``, the ``mean`` over groups, their ``gap`` and the ``rates`` of the worst ones.

    A mean over all samples hides who pays for it. Groups are metadata of the data set: ``patient`` of breast-cancer,
    ``speaker`` of vowel, ``snr_db`` of radio, ``group_test`` of an ``.npz`` file. Groups of classes are told by
    ``classes``.

    Args:
        subject: what is judged.
        by: which metadata, where the data has several; the first when None.
        fewest: groups with fewer test samples are left out.

    Raises:
        DataError: nothing is known of the samples but their classes.
        RecipeError: there is no such metadata, or no group is large enough.
    """
    known = groups_of(subject.source)
    if not known:
        raise DataError(
            f"'{subject.source.info.name}' tells nothing of its samples but their classes; take groups out of the "
            "evaluations, or give an .npz file with group_train and group_test"
        )
    if by is not None and by not in known:
        raise RecipeError(f"groups: unknown metadata '{by}'. {suggest(by, known)}")
    chosen = by or next(iter(known))
    names, members = np.unique(known[chosen][subject.predictions.index.numpy()], return_inverse=True)
    place = torch.from_numpy(members)
    return {"by": chosen, **judged(subject, lambda logits, labels: _judge(logits, labels, names, place, fewest))}


def _judge(logits: Tensor, labels: Tensor, names: np.ndarray, members: Tensor, fewest: int) -> Results:
    right = (logits.argmax(1) == labels).double()
    counts = torch.bincount(members, minlength=len(names))
    rates = torch.zeros(len(names), dtype=torch.float64).index_add(0, members, right) / counts
    kept = (counts >= fewest).nonzero()[:, 0]
    if not len(kept):
        raise RecipeError(f"groups: no group has {fewest} test samples; lower fewest")
    order = kept[rates[kept].argsort(stable=True)]
    mean, worst = float(rates[kept].mean()), float(rates[order[0]])
    return {
        "worst": worst,
        "worst_group": str(names[order[0]]),
        "mean": mean,
        "gap": mean - worst,
        "groups": len(kept),
        "rates": {str(names[i]): float(rates[i]) for i in order[:_LISTED].tolist()},
    }
