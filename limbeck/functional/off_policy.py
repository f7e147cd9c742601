"""Where the text of a step comes from: data, the student's own samples, or samples of before."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

Origin = Literal["data", "generate", "replay"]
"""Given text; text that the student writes now, and that is kept; text that it wrote before."""
Share = Literal["decreasing", "constant", "increasing"]
"""How much of the student's text is written anew as a run goes on: less and less, half of it, or more and more."""


class Threshold(NamedTuple):
    """How often the student's own text is used, and the loss that decides about more.

    Attributes:
        value: probability in [0, 1].
        reference: held-out loss with which the next one is compared; None before the first.
    """

    value: float = 0.0
    reference: float | None = None


def raised(threshold: Threshold, loss: float, *, margin: float = 0.1, step: float = 0.1) -> Threshold:
    """Returns the threshold after an evaluation: higher where the held-out loss has risen by a margin.

    The loss is compared with that of the last rise (at first with the first loss there is), so a student that worsens
    slowly is noticed too.

    Args:
        threshold: the one before.
        loss: held-out loss.
        margin: how much the loss must have risen.
        step: what is then added to the threshold, up to 1.

    References:
        Ko et al., "DistiLLM", arXiv 2402.03898, section 3.2; the rule is that of the authors' code.

    Example:
        >>> raised(raised(Threshold(), 2.0), 2.2)
        Threshold(value=0.1, reference=2.2)
    """
    if threshold.reference is None:
        return Threshold(threshold.value, loss)
    if loss < threshold.reference + margin:
        return threshold
    return Threshold(min(1.0, threshold.value + step), loss)


def fresh_share(share: Share, fraction: float) -> float:
    """Returns which part of the student's text is written anew at a point of the run.

    Args:
        share: how it changes.
        fraction: part of the run that is done, in [0, 1].

    Raises:
        ValueError: there is no such course.
    """
    if share not in get_args(Share):
        raise ValueError(f"unknown share '{share}'; known: {', '.join(get_args(Share))}")
    return {"decreasing": 1.0 - fraction, "constant": 0.5, "increasing": fraction}[share]


def origin(uniform: float, probability: float, *, share: float, room: bool) -> Origin:
    """Returns where the text of a step comes from.

    As long as the buffer has room the student writes whenever its own text is used; a buffer that is full is drawn from
    except in a part of those steps.

    Args:
        uniform: random number in [0, 1).
        probability: how often the student's own text is used.
        share: part of that which is written anew, see :func:`fresh_share`.
        room: whether the buffer is not full.

    Example:
        >>> origin(0.3, 0.5, share=0.5, room=False), origin(0.3, 0.5, share=0.5, room=True)
        ('replay', 'generate')
    """
    if uniform >= probability:
        return "data"
    return "generate" if room or uniform < probability * share else "replay"
