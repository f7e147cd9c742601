"""SeqKD: learning what the teacher wrote."""

from __future__ import annotations

from limbeck.methods.base import register
from limbeck.methods.sequence.sft import SFT


@register(
    "seq_kd",
    title="Sequence-Level Knowledge Distillation",
    authors="Yoon Kim and Alexander M. Rush",
    paper="1606.07947",
    year=2016,
    family="sequence",
    equation=r"L = -\frac{1}{M} \sum_t \log q(\hat y_t \mid \hat y_{<t}), \qquad \hat y \sim p",
)
class SeqKD(SFT):
    """Cross-entropy with sequences that the teacher generated, by beam search or sampling.

    The teacher's part is the data: completions that it wrote before training, or that a transform has it write. A
    server that gives nothing but text suffices.

    Terms:
        ce: negative log-probability of each token of the teacher's completions.

    Args:
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """
