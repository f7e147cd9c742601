"""What methods of robust training have in common: roles that see a batch as an attack left it."""

from __future__ import annotations

from dataclasses import replace

from limbeck.methods.base import Observers
from limbeck.signals import Batch, Signals

ADVERSARIAL = "adversarial"
"""View of a role's signals on adversarial examples."""

ADVERSARIAL_INPUTS = "adversarial_inputs"
"""Entry of the batch that the transform ``pgd`` adds."""


def seen_by_all(batch: Batch, key: str = ADVERSARIAL_INPUTS) -> Batch:
    """Returns the batch with ``batch[key]`` as what every role sees."""
    kept = {name: value for name, value in batch.items() if not name.endswith("_inputs")}
    return Batch(kept, inputs=batch[key])


def observe_both(role: str, batch: Batch, observers: Observers) -> Signals:
    """Returns what a role says of the clean images, and of the attacked ones as the view ``adversarial``."""
    clean = observers[role](batch)
    return replace(clean, views={ADVERSARIAL: observers[role](seen_by_all(batch))})
