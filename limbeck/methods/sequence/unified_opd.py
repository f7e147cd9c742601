"""On-policy distillation as one objective: a divergence, a source of sequences, a granularity, a teacher's access."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.policy import policy_surrogate, reward_to_go
from limbeck.functional.score_function import sampled_merit
from limbeck.functional.sequences import sequence_sums
from limbeck.functional.token_losses import LabelLoss, TokenLoss
from limbeck.hyperparameters import NonNegative, Positive
from limbeck.methods.base import Needs, register
from limbeck.methods.sequence.base import (
    DENSE_TARGET,
    STUDENT,
    TARGET,
    TOKEN_LOGPROBS,
    Average,
    DivergenceChoice,
    SequenceMethod,
    chosen_divergence,
    target_loss,
    token_log_probabilities,
)
from limbeck.methods.sequence.opd_cells import Access, Cell, Granularity, Part, Source
from limbeck.signals import Batch, Signals, Term, Terms

_TERMS: dict[Part, str] = {"dense": "kd", "likelihood": "ce", "reward": "reward"}


@register(
    "unified_opd",
    title="A Survey of On-Policy Distillation for Large Language Models",
    authors="Mingyang Song and Mao Zheng",
    paper="2604.00626",
    year=2026,
    family="sequence",
    equation=r"L = \mathbb{E}_{y \sim \mu} \sum_t D\big(p(\cdot \mid y_{<t}), q(\cdot \mid y_{<t})\big)"
    r" \quad\text{or}\quad D\big(p(y), q(y)\big)",
)
class UnifiedOPD(SequenceMethod):
    """Any divergence on sequences of any source, of tokens or of whole sequences, with what a teacher tells.

    Where the teacher gives distributions, the divergence at every token is exact. Where it only scores given tokens,
    its gradient comes from the student's or the teacher's samples (see :func:`~limbeck.functional.sampled_merit`).
    A divergence of whole sequences always needs samples; reverse KL then lets each token answer for what follows it,
    and is exact in the token itself where distributions are given. A cell that nothing could estimate is refused when
    the method is made, with the reason and a cell near it that runs.

    Some cells have names of their own: word-level KD (``data``, ``white_box``), GKD (``mixed``, jsd), on-policy
    distillation (``student``, ``scores``, reverse KL), MiniLLM's objective (``student``, ``sequence``, reverse KL),
    sequence-level KD (``teacher``, ``text``), fine-tuning (``data``, ``none``), GRPO (``student``, ``none``, a reward).
    Who writes is the business of the transform ``rollout``; the method checks that the batch is what ``source`` says.

    Terms:
        kd: divergence at each token, or its sum over a sequence.

    Other cells have ``policy``, a negative surrogate whose gradient is that of the divergence, or ``ce``, the negative
    log-likelihood of the text; a ``reward_weight`` adds ``reward``, the negative surrogate of the reward's advantage.

    Args:
        divergence: name of a divergence, or a dict of its ``name`` and parameters; null for a reward alone.
        source: who wrote the sequences: ``data``, the ``student``, both (``mixed``), or the ``teacher``.
        granularity: ``token``: distributions of the next token at given beginnings; ``sequence``: of whole sequences,
            summed over their tokens, the mean over sequences.
        access: what the teacher tells: distributions (``white_box``), log-probabilities of given tokens (``scores``),
            ``text``, or nothing since there is ``none``.
        reward_weight: weight of a reward's advantage, which the batch then holds.
        temperature: divides both logits, where distributions are compared.
        clip: range of likelihood ratios around 1; None for no clipping.
        average: of ``token``: ``token_mean`` over all tokens of the batch, or ``sequence_mean`` over sequences of their
            means.
    """

    needs = Needs(student={STUDENT}, teacher={TARGET}, batch={"labels", "mask"})
    optional_entries = frozenset({"sampler_logprobs", "on_policy"})

    def __init__(
        self,
        *,
        divergence: DivergenceChoice | None = "reverse_kl",
        source: Source = "student",
        granularity: Granularity = "token",
        access: Access = "white_box",
        reward_weight: NonNegative = 0.0,
        temperature: Positive = 1.0,
        clip: NonNegative | None = None,
        average: Average = "token_mean",
    ) -> None:
        super().__init__()
        chosen = None if divergence is None else chosen_divergence(divergence)
        self.cell = Cell(chosen, source, granularity, access, reward_weight > 0)
        self.chosen_parts = self.cell.parts()
        if temperature != 1.0 and self.chosen_parts - {"dense", "reward"}:
            raise RecipeError(
                f"method 'unified_opd': temperature = {temperature}, but samples are those of the models as they are; "
                "it belongs to access: white_box, granularity: token"
            )
        self.temperature = temperature
        self.clip = clip
        self.average = average
        self.weights = {_TERMS.get(part, "policy"): 1.0 for part in sorted(self.chosen_parts)}
        if "reward" in self.weights:
            self.weights["reward"] = reward_weight
        self.needs = self._needed()
        if access in ("text", "none"):
            self.roles = _student_alone  # type: ignore[method-assign]

    def _needed(self) -> Needs:
        entries = {"labels", "mask"}
        if self.cell.source == "student":
            entries.add("on_policy")
        if self.cell.rewarded:
            entries.add("advantage")
        told = {
            "white_box": TARGET if self.chosen_parts <= {"dense", "reward"} else DENSE_TARGET,
            "scores": TOKEN_LOGPROBS,
        }
        if self.cell.access not in told:
            return Needs(student={STUDENT}, batch=entries)
        return Needs(student={STUDENT}, teacher={told[self.cell.access]}, batch=entries)

    def forward(self, batch: Batch, student: Signals, teacher: Signals | None = None) -> Terms:
        """Returns the terms of the cell."""
        self._check_source(batch)
        labels, mask, parts = batch["labels"], batch["mask"], self.chosen_parts
        losses: dict[str, TokenLoss] = {}
        if "dense" in parts:
            assert teacher is not None
            assert self.cell.divergence is not None
            losses["kd"] = target_loss(self.cell.divergence, teacher, student, temperature=self.temperature)
        if parts != {"dense"}:
            losses["nll"] = LabelLoss(labels)
        # Positions that all count alike have their gradient in the forward pass.
        alike = self.cell.granularity == "token" and parts in ({"dense"}, {"likelihood"})
        values = self.position_losses(student, losses, mask, gradient="forward" if alike else "backward")
        terms: Terms = {}
        if "dense" in parts:
            terms["kd"] = self._added_up(values["kd"], mask)
        if "likelihood" in parts:
            terms["ce"] = self._added_up(values["nll"], mask)
        if parts & {"sampled", "whole", "returns", "future"}:
            assert teacher is not None
            terms["policy"] = self._policy(batch, -values["nll"], token_log_probabilities(teacher, labels, mask))
        if "reward" in parts:
            log_q = -values["nll"]
            sampler = batch.get("sampler_logprobs", log_q.detach())
            surrogate = policy_surrogate(log_q, [(sampler, 1.0)], batch["advantage"], clip=self.clip)
            terms["reward"] = self._added_up(-surrogate.objective, mask)
        return terms

    def _policy(self, batch: Batch, log_q: Tensor, log_p: Tensor) -> Term:
        """Returns the negative surrogate whose gradient is that of the divergence."""
        chosen, mask = self.cell.divergence, batch["mask"]
        assert chosen is not None
        drawn = log_p if self.cell.source == "teacher" else batch.get("sampler_logprobs", log_q.detach())
        if "whole" in self.chosen_parts:
            of_ours, of_theirs, of_drawn = (sequence_sums(x, mask).unsqueeze(-1) for x in (log_q, log_p, drawn))
            merit = sampled_merit(chosen, of_theirs, of_ours.detach())
            whole = policy_surrogate(of_ours, [(of_drawn, 1.0)], merit, clip=self.clip)
            return Term(-whole.objective.squeeze(-1), mask.bool().any(-1))
        if "sampled" in self.chosen_parts:
            merit = sampled_merit(chosen, log_p, log_q.detach())
        else:
            ratios = torch.where(mask.bool(), log_p - log_q.detach(), log_q.new_zeros(()))
            merit = reward_to_go(ratios, mask) - (ratios if "future" in self.chosen_parts else 0.0)
        surrogate = policy_surrogate(log_q, [(drawn, 1.0)], merit, clip=self.clip)
        return self._added_up(-surrogate.objective, mask)

    def _added_up(self, values: Tensor, mask: Tensor) -> Term:
        """Returns the term of ``[B, T]`` values: their average over tokens, or their sum in each sequence."""
        if self.cell.granularity == "token":
            return self.averaged(values, mask)
        return Term(sequence_sums(values, mask), mask.bool().any(-1))

    def _check_source(self, batch: Batch) -> None:
        flags, source = batch.get("on_policy"), self.cell.source
        if flags is None or source == "mixed":
            return
        if source == "student" and not bool(flags.all()):
            raise NeedsError(
                "source: student, but some rows of the batch are not the student's; set source: mixed, or the "
                "probability of the rollout to 1"
            )
        if source != "student" and bool(flags.any()):
            raise NeedsError(f"source: {source}, but the student wrote rows of the batch; set source: student or mixed")


def _student_alone() -> tuple[str, ...]:
    return ("student",)
