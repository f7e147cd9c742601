"""Further classifiers on the features that a student's own classifier reads, and students with another classifier."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from limbeck import streams
from limbeck.anatomy import anatomy_of, head_of
from limbeck.errors import NeedsError
from limbeck.methods.base import Setup
from limbeck.taps import untap

_TOLERANCE = 2e-2
"""Room for a student that runs in bfloat16, relative to its largest logit."""


def further_head(setup: Setup, outputs: int, purpose: str, *, hidden: int = 0, dropout: float = 0.0) -> nn.Module:
    """Returns a new classifier for the student's pooled features.

    Its start comes from the seed of the run and leaves the global generator as it was, so a student beside it trains
    as it would alone.

    Args:
        setup: what the method is built from.
        outputs: number of scores.
        purpose: tells heads of one run apart.
        hidden: width of a hidden layer; 0 for a linear classifier.
        dropout: part of the hidden values that is dropped in training.
    """
    features = setup.signals["student"].feature("pooled").flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.torch_seed(setup.seed, f"head/{purpose}"))
        inputs = features.shape[1]
        head = PerceptronHead(inputs, outputs, hidden=hidden, dropout=dropout) if hidden else nn.Linear(inputs, outputs)
    return head.to(features.device)


def check_replaceable(setup: Setup, owner: str) -> None:
    """Refuses a student whose classifier cannot be exchanged for another one on the same features.

    Args:
        setup: what the method is built from.
        owner: name of the method, for the error.

    Raises:
        NeedsError: the tapped features are not what the classifier reads, or the model's scores are not what it gives.
    """
    model = setup.models["student"]
    classifier, path = head_of(model), anatomy_of(model).head
    tapped = list(setup.taps.get("student", {}).get("pooled", ()))
    if tapped and tapped != [f"{path}@in"]:
        raise NeedsError(
            f"{owner} exchanges the student's classifier '{path}', so it must read that classifier's input, but "
            f"'pooled' is tapped at {tapped}; set `roles: {{student: {{taps: {{pooled: ['{path}@in']}}}}}}`"
        )
    said = setup.signals["student"]
    assert said.logits is not None
    with torch.no_grad():
        again = classifier(said.feature("pooled").to(next(classifier.parameters()).dtype))
    same = again.shape == said.logits.shape
    gap = float((again - said.logits).abs().max()) if same else float("inf")
    if not gap <= _TOLERANCE * max(float(said.logits.abs().max()), 1.0):
        raise NeedsError(
            f"{owner} exchanges the student's classifier, but the scores of {type(model).__name__} are not the output "
            f"of its module '{path}'; give the model an `anatomy` whose `head` is the module that makes the scores"
        )


def with_classifier(student: nn.Module, classifier: nn.Module) -> nn.Module:
    """Returns a copy of a student with another classifier in place of its own.

    Args:
        student: a student that passed :func:`check_replaceable`.
        classifier: reads the pooled features; a copy is made.
    """
    whole = copy.deepcopy(student)
    untap(whole)
    parent, _, name = anatomy_of(student).head.rpartition(".")
    setattr(whole.get_submodule(parent), name, copy.deepcopy(classifier))
    return whole


class PerceptronHead(nn.Module):
    """A classifier with a hidden layer: linear, dropout, batch normalisation, ReLU, linear.

    Args:
        inputs: number of features ``D``.
        outputs: number of scores.
        hidden: width of the hidden layer.
        dropout: part of the hidden values that is dropped in training.
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(inputs, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.outer = nn.Linear(hidden, outputs)
        self.dropout = dropout

    def forward(self, features: Tensor, chances: Tensor | None = None) -> Tensor:
        """Returns the scores ``[B, outputs]``.

        Args:
            features: ``[B, D]``.
            chances: ``[B, hidden]`` numbers in [0, 1); values whose chance is below ``dropout`` are dropped. None
                drops nothing.
        """
        hidden = self.inner(features)
        if chances is not None:
            hidden = torch.where(chances < self.dropout, hidden.new_zeros(()), hidden / (1 - self.dropout))
        return self.outer(torch.relu(self.norm(hidden)))
