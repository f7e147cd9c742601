"""Where the parts of an image classifier are: what the literature calls stem, stages, pooled features and classifier."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn

from limbeck.errors import TapError


@dataclass(frozen=True)
class Anatomy:
    """Tap paths and module paths of a classifier.

    Attributes:
        stem: output of the stem.
        stages: the map at the end of each stage, after its activation.
        preacts: the same before the activation.
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
        taps = {"stem": self.stem, "stages": self.stages, "preacts": self.preacts, "pooled": self.pooled}
        return {group: paths for group, paths in taps.items() if paths}


def anatomy_of(model: nn.Module) -> Anatomy:
    """Returns the model's own ``anatomy`` attribute, or what can be told from its modules.

    torchvision and timm residual networks name their stages ``layer1`` ... ``layer4``; for any model, the last ``nn.Linear`` is taken as
    the classifier and its input as the pooled features. Taps given in a recipe take precedence over both.
    """
    own = getattr(model, "anatomy", None)
    if isinstance(own, Anatomy):
        return own
    children = dict(model.named_children())
    stages = tuple(name for name in ("layer1", "layer2", "layer3", "layer4") if name in children)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = linears[-1] if linears else ""
    return Anatomy(stages=stages, pooled=(f"{head}@in",) if head else (), head=head)


def head_of(model: nn.Module) -> nn.Module:
    """Returns the linear classifier of a model.

    Raises:
        TapError: the model does not say where it is.
    """
    path = anatomy_of(model).head
    if not path:
        known = ", ".join(f.name for f in fields(Anatomy))
        raise TapError(f"{type(model).__name__} has no linear classifier that limbeck could find; give it an `anatomy` ({known})")
    return model.get_submodule(path)
