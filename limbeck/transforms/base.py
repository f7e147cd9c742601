"""The contract of a transform: batch in, batch out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from limbeck.data.pixel_scale import PixelScale
from limbeck.errors import NeedsError, RecipeError
from limbeck.hyperparameters import validated
from limbeck.registry import Registry
from limbeck.schedules import Progress
from limbeck.signals import Batch, Signals


class Transform:
    """Base of every transform.

    It is a pure function of the batch, of the seed and of what the batch says of itself (``epoch``, ``index``): its
    randomness comes from :mod:`limbeck.streams`, so a resumed run and a replay see the same.

    Args:
        seed: seed of the run.
        num_classes: number of classes of the data; 0 where there are none.

    Attributes:
        changes: entries of the batch that it changes or adds. A teacher cache holds nothing for changed ``inputs``.
        pixel_scale: how pixel values in [0, 1] became inputs; the run sets it.
    """

    changes: ClassVar[frozenset[str]] = frozenset()
    pixel_scale: PixelScale = PixelScale()

    def __init__(self, *, seed: int, num_classes: int) -> None:
        self.seed = seed
        self.num_classes = num_classes
        self.progress = Progress(0, 1, 1)
        self.training = False

    def at(self, progress: Progress, *, training: bool) -> None:
        """Hears, before every batch, where the stage stands.

        Args:
            progress: where.
            training: whether a step is taken on the batch; a dry run, or a pass over the data, is to leave no trace.
        """
        self.progress, self.training = progress, training

    def __call__(self, batch: Batch) -> Batch:
        """Returns the changed batch; the one given stays as it was."""
        raise TypeError(f"{type(self).__name__} does not define __call__(batch)")


class ModelTransform(Transform):
    """Base of transforms that run models: attacks, learned augmentation.

    It sees the roles as they are at that step, in eval mode, and must leave their parameters, gradients and buffers as
    it finds them. What it learns itself travels in :meth:`state_dict`, so that a resumed run goes on with the same
    bits.

    Attributes:
        runs: roles that it runs.
    """

    runs: tuple[str, ...] = ("student",)

    def __init__(self, *, seed: int, num_classes: int) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        self.observers: Mapping[str, Callable[[Batch], Signals]] = {}

    def bind(self, observers: Mapping[str, Callable[[Batch], Signals]], loader: Any = None) -> None:
        """Takes what gives each role its signals, and the loader; a stage calls it once, before the first batch.

        Raises:
            NeedsError: a role that it runs is not there.
        """
        missing = [role for role in self.runs if role not in observers]
        if missing:
            raise NeedsError(
                f"{type(self).__name__} runs the role '{missing[0]}', which the method does not have; "
                f"its roles are {sorted(observers)}"
            )
        self.observers = {role: observers[role] for role in self.runs}

    def writers(self) -> tuple[str, ...]:
        """Roles that may write text for the batch that comes, token by token; the same in every process.

        Each process writes on its own, so a sharded model is made whole for it.
        """
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Returns what it has learnt, as tensors and plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""

    def heard(self, evaluation: Mapping[str, float]) -> None:
        """Hears what the evaluation after an epoch found."""

    def report(self) -> dict[str, float]:
        """Returns numbers for the epoch's line of metrics, the same for every run of a recipe, and begins anew."""
        return {}

    def records(self) -> list[dict[str, Any]]:
        """Returns lines for ``rollouts.jsonl`` of the run folder, likewise."""
        return []

    def rates(self) -> dict[str, float]:
        """Returns how fast it is, which differs from run to run."""
        return {}


transforms: Registry[type[Transform]] = Registry("transform", "limbeck.transforms")

T = TypeVar("T", bound=type[Transform])


def transform(name: str, **about: Any) -> Callable[[T], T]:
    """Returns a decorator that registers a :class:`Transform` and checks its options at construction."""
    enter = transforms.register(name, **about)

    def decorate(cls: T) -> T:
        cls.__init__ = validated(f"transform '{name}'", cls.__init__)  # type: ignore[method-assign]
        enter(cls)
        return cls

    return decorate


def build_transform(entry: str | Mapping[str, Any], *, seed: int, num_classes: int, trust: bool = False) -> Transform:
    """Returns the transform of a recipe entry: a name, or a mapping of ``name`` and options.

    Args:
        entry: the recipe's.
        seed: seed of the run.
        num_classes: number of classes, or of tokens.
        trust: allow options that run the code they name, for transforms that have such.

    Raises:
        UnknownNameError: no transform has that name; proposes near matches.
        RecipeError: an option is unknown or out of its range.
    """
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"a transform is written {{name: mixup, alpha: 0.2}}, but this says {entry!r}")
    for reserved in ("seed", "num_classes", "trust"):
        if reserved in options:
            raise RecipeError(f"transform '{name}': '{reserved}' is set by the run; remove it")
    made: Any = transforms[name].part
    given: dict[str, Any] = {"seed": seed, "num_classes": num_classes, "trust": trust}
    takes = inspect.signature(made).parameters
    return made(**{str(k): v for k, v in options.items()}, **{k: v for k, v in given.items() if k in takes})


def build_transforms(entries: Sequence[str | Mapping[str, Any]], loader: Any, **given: Any) -> list[Transform]:
    """Returns the transforms of recipe entries for the batches of a loader, which says how pixels became inputs.

    Args:
        entries: the recipe's.
        loader: what gives the batches.
        **given: what :func:`build_transform` takes beside an entry.

    Raises:
        LimbeckError: an entry is no transform, as :func:`build_transform` says.
    """
    made = [build_transform(entry, **given) for entry in entries]
    for change in made:
        change.pixel_scale = getattr(loader, "pixel_scale", change.pixel_scale)
    return made
