"""Where the parts of an image classifier are: stem, stages, pooled features and classifier."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from torch import nn

from limbeck.errors import TapError

TAP_GROUPS = ("stem", "stages", "preacts", "pooled")
"""Names of the tap groups of an image classifier."""


@dataclass(frozen=True)
class Anatomy:
    """Tap paths and module paths of a classifier.

    Attributes:
        stem: output of the stem.
        stages: the map at the end of each stage, after its activation. Where no activation ends a stage
            (pre-activation networks, linear bottlenecks, transformers) it is the map that leaves the stage.
        preacts: the same before the activation. In pre-activation networks it is the map after the normalisation that
            reads it next; where a map meets no activation at all it equals ``stages``.
        pooled: the vector that the classifier reads.
        head: module path of the linear classifier.
        norms: module paths of the last normalisation before each of ``preacts`` (OFD's margins come from it).
    """

    stem: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    preacts: tuple[str, ...] = ()
    pooled: tuple[str, ...] = ()
    head: str = ""
    norms: tuple[str, ...] = ()

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Tap paths by group, leaving out what the model does not have."""
        taps: dict[str, tuple[str, ...]] = {group: getattr(self, group) for group in TAP_GROUPS}
        return {group: paths for group, paths in taps.items() if paths}

    def under(self, parent: str) -> Anatomy:
        """Returns the anatomy as seen from a module that holds the model as its child ``parent``.

        Example:
            >>> Anatomy(stages=("layer1",), head="fc").under("network")
            Anatomy(stem=(), stages=('network.layer1',), preacts=(), pooled=(), head='network.fc', norms=())
        """
        tuples = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "head"}
        moved = {name: tuple(f"{parent}.{path}" for path in paths) for name, paths in tuples.items()}
        return Anatomy(head=f"{parent}.{self.head}" if self.head else "", **moved)


def anatomy_of(model: nn.Module) -> Anatomy:
    """Returns the model's own ``anatomy`` attribute, or what can be told from its modules.

    Known are torchvision's and transformers' residual networks and what timm says about its convolutional networks;
    for any model, the last ``nn.Linear`` is taken as the classifier and its input as the pooled features. Taps given
    in a recipe take precedence over all of these.
    """
    own = getattr(model, "anatomy", None)
    if isinstance(own, Anatomy):
        return own
    head = _head_path(model)
    found = _from_feature_info(model) or _from_names(model)
    return replace(found, pooled=(f"{head}@in",) if head else (), head=head)


def head_of(model: nn.Module) -> nn.Module:
    """Returns the linear classifier of a model.

    Raises:
        TapError: the model does not say where it is.
    """
    path = anatomy_of(model).head
    if not path:
        known = ", ".join(f.name for f in fields(Anatomy))
        raise TapError(
            f"{type(model).__name__} has no linear classifier that limbeck could find; give it an `anatomy` ({known})"
        )
    return model.get_submodule(path)


def _head_path(model: nn.Module) -> str:
    """Returns the path of the classifier that timm declares, or of the last linear layer."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    declared = getattr(model, "pretrained_cfg", None) or {}
    classifier = declared.get("classifier") if isinstance(declared, dict) else None
    # Models with a second, distilled head declare both, the ordinary one first.
    first = classifier[0] if isinstance(classifier, (tuple, list)) else classifier
    if isinstance(first, str) and first in linears:
        return first
    return linears[-1] if linears else ""


def _from_feature_info(model: nn.Module) -> Anatomy | None:
    """Reads timm's table of features; None for other models and for those whose features are tokens and not maps."""
    table: Any = getattr(model, "feature_info", None)
    if not isinstance(table, list) or not table or hasattr(model, "patch_embed"):
        return None
    reductions = [entry["reduction"] for entry in table]
    if any(b <= a for a, b in pairwise(reductions)):
        return None
    stems = [entry["module"] for entry in table if entry["reduction"] < 4]
    return Anatomy(stem=tuple(stems[-1:]), stages=tuple(entry["module"] for entry in table if entry["reduction"] >= 4))


def _from_names(model: nn.Module) -> Anatomy:
    """Reads the names ``layer1`` ... ``layer4`` (torchvision) or ``<anywhere>.stages.0`` ... (transformers)."""
    names = [name for name, _ in model.named_modules()]
    layers = tuple(name for name in names if re.fullmatch(r"layer[1-4]", name))
    if layers:
        return Anatomy(stem=("relu",) if "relu" in names else (), stages=layers)
    stages = [name for name in names if re.fullmatch(r"(.*\.)?stages\.\d+", name)]
    parents = {name.rpartition(".")[0] for name in stages}
    return Anatomy(stages=tuple(stages)) if len(parents) == 1 else Anatomy()
