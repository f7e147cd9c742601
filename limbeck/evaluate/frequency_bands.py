"""Where a student lost its teacher: fidelity and loss on frequent and on rare tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.data.text import TextSource
from limbeck.errors import DataError
from limbeck.evaluate.base import Results, Subject, evaluations
from limbeck.evaluate.language import TASK, tokens_of
from limbeck.evaluate.measure import Measure
from limbeck.evaluate.tokens import Tokens
from limbeck.hyperparameters import Count

_UNSEEN = -1


@evaluations.register(
    "frequency_bands",
    title="KL to the teacher, agreement and loss by how frequent a token is in the training text",
    task=TASK,
    measures=(
        Measure(
            "frequency_bands.common.kl", "KL, common", "number", "lower", "KL to the teacher on the commonest tokens."
        ),
        Measure("frequency_bands.rare.kl", "KL, rare", "number", "lower", "KL to the teacher on the rarest tokens."),
        Measure("frequency_bands.common.loss", "Loss, common", "number", "lower", "Loss on the commonest tokens."),
        Measure("frequency_bands.rare.loss", "Loss, rare", "number", "lower", "Loss on the rarest tokens."),
    ),
)
def frequency_bands(subject: Subject, *, bands: Count = 5) -> Results:
    """Returns ``bands`` from common to rare tokens, last one of tokens that the training text lacks, and both ends.

    The tokens of the vocabulary, by falling frequency in the training text, are divided into bands of about equally
    many training tokens. A place of the held-out text belongs to the band of the token that truly stands there.

    Args:
        subject: what is judged.
        bands: number of bands; fewer where single tokens fill more than one.

    Raises:
        DataError: the training text is not known.
    """
    if not isinstance(subject.train, TextSource):
        raise DataError("frequency bands are those of the training text; give it as `train`")
    tokens = tokens_of(subject)
    counts = _counts(subject.train)
    of_token = band_of_tokens(counts, bands)
    where = of_token[tokens.labels]
    found = [
        _describe(tokens, where == band, of_token == band, counts)
        for band in [*range(bands), _UNSEEN]
        if bool((where == band).any())
    ]
    seen = [band for band in found if band["frequency"][1] > 0]
    ends = {"common": seen[0], "rare": seen[-1]} if seen else {}
    keys = ("kl", "loss")
    student = {name: {key: band[key] for key in keys if key in band} for name, band in ends.items()}
    if "teacher" not in tokens.loss:
        return {"bands": found, **student}
    teacher = {name: {"loss": band["teacher_loss"]} for name, band in ends.items()}
    return {"bands": found, **student, "teacher": teacher}


def _counts(source: TextSource) -> Tensor:
    """Returns how often every token of the vocabulary is to be predicted in the training text: ``[V]`` int64."""
    learnt = [torch.from_numpy(s.ids[1:][s.learn[1:]]) for s in source.sequences]
    return torch.bincount(torch.cat(learnt), minlength=source.info.num_classes)


def band_of_tokens(counts: Tensor, bands: int) -> Tensor:
    """Returns the band ``[V]`` of every token, 0 for the commonest and -1 for those that never occur.

    Args:
        counts: ``[V]`` occurrences in the training text.
        bands: number of bands of about equally many occurrences.

    Example:
        >>> band_of_tokens(torch.tensor([1, 4, 0, 1, 2]), 2).tolist()
        [1, 0, -1, 1, 1]
    """
    order = counts.argsort(descending=True, stable=True)
    sorted_counts = counts[order].double()
    middle = (sorted_counts.cumsum(0) - sorted_counts / 2) / sorted_counts.sum().clamp(min=1)
    found = torch.empty_like(counts)
    found[order] = (middle * bands).long().clamp(max=bands - 1)
    return found.masked_fill(counts == 0, _UNSEEN)


def _describe(tokens: Tokens, chosen: Tensor, kinds: Tensor, counts: Tensor) -> Results:
    per_million = 1e6 * counts[kinds].double() / counts.sum()
    result: Results = {
        "frequency": [per_million.min().item(), per_million.max().item()],
        "kinds": int(kinds.sum()),
        "tokens": int(chosen.sum()),
        "loss": _mean(tokens.loss["student"], chosen),
    }
    if "teacher" in tokens.loss:
        result["teacher_loss"] = _mean(tokens.loss["teacher"], chosen)
    if tokens.compared:
        result["kl"] = _mean(tokens.compared["forward"], chosen)
        result["reverse_kl"] = _mean(tokens.compared["reverse"], chosen)
        result["agreement"] = _mean(tokens.top1["student"] == tokens.top1["teacher"], chosen)
    return result


def _mean(values: Tensor, chosen: Tensor) -> float:
    return values[chosen].double().mean().item()
