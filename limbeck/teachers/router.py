"""Several providers, of which every domain of the text has one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from limbeck.errors import NeedsError, RecipeError, suggest
from limbeck.signals import Batch, Signals, TopK
from limbeck.teachers.ensemble import Ensemble, with_logits
from limbeck.teachers.provider import Provider


class Router(Ensemble):
    """Asks, about each row of a batch, the provider of its domain alone.

    A member runs on its own rows only, so several teachers cost no more than one.

    Args:
        members: a provider for every domain, by the domain's name.
        domains: names of the domains, in the order of the numbers that batches hold as ``domain``.

    Raises:
        RecipeError: a domain has no member, or a member no domain.

    Example:
        >>> says = lambda value: lambda batch: Signals(logits=torch.full((batch.size, 1, 2), value))
        >>> router = Router({"novel": says(0.0), "code": says(1.0)}, ("novel", "code"))
        >>> router(Batch(domain=torch.tensor([1, 0, 1]), index=torch.arange(3))).logits[:, 0, 0].tolist()
        [1.0, 0.0, 1.0]
    """

    def __init__(self, members: Mapping[str, Provider], domains: Sequence[str]) -> None:
        if not domains:
            raise RecipeError("a router sends every domain to its teacher, but the data has no domains; use `domains`")
        for name in (*members, *domains):
            if name not in members:
                raise RecipeError(f"no teacher of the router is for the domain '{name}'; it knows {sorted(members)}")
            if name not in domains:
                raise RecipeError(
                    f"the router has a teacher for '{name}', no domain of the data. {suggest(name, domains)}"
                )
        super().__init__([members[name] for name in domains])
        self.domains = tuple(domains)

    def __call__(self, batch: Batch) -> Signals:
        """Returns what the members say, each about its own rows.

        Raises:
            NeedsError: the batch tells no domains, or the members give what cannot stand in one batch.
        """
        if "domain" not in batch:
            raise NeedsError(
                "a router needs the domain of every row, but the batch does not tell it; use data: domains"
            )
        numbers = batch["domain"]
        rows = [(numbers == number).nonzero()[:, 0] for number in range(len(self.members))]
        said = [
            (member(batch.map(lambda t, own=own: t[own])), own)  # type: ignore[misc]
            for member, own in zip(self.members, rows)
            if len(own)
        ]
        return _merged([signals for signals, _ in said], torch.cat([own for _, own in said]).argsort())

    def fingerprint(self) -> str:
        """Returns a hash of the domains and the fingerprints of their members.

        Raises:
            NeedsError: a member has no fingerprint, so the router cannot be known again.
        """
        text = f"{self.domains}/{super().fingerprint()}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _merged(parts: Sequence[Signals], order: torch.Tensor) -> Signals:
    """Returns the rows of several records in one, in the given order."""
    said = [with_logits(part) for part in parts]
    kinds = [part.present() & {"logits", "topk", "logprobs", "sampled"} for part in said]
    common = frozenset.intersection(*kinds)
    if not common & {"logits", "topk"} or ("logits" not in common and any("logits" in kind for kind in kinds)):
        raise NeedsError(
            "the teachers of a router should all give distributions, or all lists of the likeliest tokens, but they "
            f"give {[' and '.join(sorted(kind)) or 'neither' for kind in kinds]}"
        )
    logits = torch.cat([_known(part.logits) for part in said])[order] if "logits" in common else None
    logprobs = torch.cat([_known(part.logprobs) for part in said])[order] if "logprobs" in common else None
    views = frozenset.intersection(*(frozenset(part.views) for part in said))
    return Signals(
        logits=logits,
        logprobs=logprobs,
        topk=_lists([part.topk for part in said if part.topk is not None], order) if "topk" in common else None,
        views={view: _merged([part.views[view] for part in said], order) for view in sorted(views)},
    )


def _lists(parts: Sequence[TopK], order: torch.Tensor) -> TopK:
    sizes = {part.logprobs.shape[-1] for part in parts}
    if len(sizes) > 1:
        raise NeedsError(f"the teachers of a router list {sorted(sizes)} tokens a place; let all list as many")
    first = parts[0]
    return replace(
        first,
        logprobs=torch.cat([part.logprobs for part in parts])[order],
        indices=torch.cat([part.indices for part in parts])[order],
        tail=torch.cat([part.tail for part in parts])[order],
        logsumexp=None,
    )


def _known(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor
