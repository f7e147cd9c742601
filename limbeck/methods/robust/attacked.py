"""What methods of robust training have in common: roles that see a batch as an attack left it."""

from __future__ import annotations

from limbeck.signals import Batch

ADVERSARIAL_INPUTS = "adversarial_inputs"
"""Entry of the batch that the transform ``pgd`` adds."""


def seen_by_all(batch: Batch, key: str = ADVERSARIAL_INPUTS) -> Batch:
    """Returns the batch with ``batch[key]`` as what every role sees."""
    kept = {name: value for name, value in batch.items() if not name.endswith("_inputs")}
    return Batch(kept, inputs=batch[key])
