"""MiniPLM: the teacher chooses the text, and the student learns from it alone."""

from __future__ import annotations

from limbeck.methods.base import register
from limbeck.methods.sequence.sft import SFT


@register(
    "miniplm",
    title="MiniPLM: Knowledge Distillation for Pre-Training Language Models",
    authors="Yuxian Gu and Hao Zhou and Fandong Meng and Jie Zhou and Minlie Huang",
    paper="2410.17215",
    year=2024,
    family="sequence",
    equation=r"s(x) = \frac{1}{n} \log \frac{p(x)}{r(x)}, \qquad"
    r" L = -\frac{1}{M} \sum_{x \in \mathrm{top}_\alpha(s)} \sum_t \log q(x_t \mid x_{<t})",
)
class MiniPLM(SFT):
    """Next-token loss on the part of a corpus that the teacher knows and a small reference model does not.

    The selection ``difference_sampling`` scores every row of the text once, before the first step, by the roles
    ``teacher`` and ``reference`` of the recipe, and keeps the best; neither model runs while the student trains. The
    reference should have learnt from other text of the same kind: a stage before this one, with
    ``data: {holdout: 0.1, train_on: holdout}``.

    Terms:
        ce: negative log-probability of each token of the chosen rows.

    Deviations: the authors print the score as a ratio of log-probabilities, but compute the logarithm of the ratio, as
    the paper and this method do. The score is a mean over tokens, as in their code; the paper sums, which is the same
    ranking for rows of one length (``normalized``).

    Args:
        average: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their means.
    """

    selection = "difference_sampling"
