"""Adapters of divergences and methods for sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from goldens.drive import total
from goldens.replay import Case, gradients, replays
from limbeck.functional.advantages import expected_advantage, sparse_advantage
from limbeck.functional.divergence_registry import divergence
from limbeck.functional.log_divergences import head_weight
from limbeck.functional.loss_head import token_losses
from limbeck.functional.metrics import binned_confidence, calibration_gap
from limbeck.functional.policy import reward_to_go
from limbeck.functional.preference import preference_loss
from limbeck.functional.sampled_targets import Draws, importance_weights
from limbeck.functional.sequences import next_tokens
from limbeck.functional.sparse_targets import top_k, top_k_loss
from limbeck.functional.speculative import interleave
from limbeck.methods.base import Method, build_method
from limbeck.methods.sequence.adpa import SparseAdvantageLoss
from limbeck.methods.sequence.base import token_log_probabilities
from limbeck.methods.sequence.first import FIRST
from limbeck.methods.sequence.taid import TAID
from limbeck.schedules import Progress
from limbeck.signals import Batch, Sampled, Signals, Term, TopK, as_term


def token_batch(labels: Tensor, mask: Tensor | None = None, **entries: Any) -> Batch:
    """Returns a batch of aligned labels; -100 does not count unless a mask says otherwise."""
    flags = labels != -100 if mask is None else mask.bool()
    return Batch(index=torch.arange(len(labels)), labels=labels, mask=flags, **entries)


def term(method: Method, name: str, batch: Batch, **signals: Signals) -> Term:
    """Returns one term of a method on signals."""
    return as_term(method(batch, **signals)[name])


@replays("shift / mask / reduction / padded-head conventions")
def conventions(case: Case) -> dict[str, Tensor]:
    vocabulary = case.config["true_vocab"]
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    labels, mask = next_tokens(case.input("labels"), ignore=case.config["ignore_index"])
    mask = mask & case.input("attention_mask")[:, 1:].bool()
    batch = token_batch(labels.masked_fill(~mask, -100), mask)
    signals = {
        "student": Signals(logits=student[:, :-1, :vocabulary]),
        "teacher": Signals(logits=teacher[:, :-1, :vocabulary]),
    }
    results: dict[str, Tensor] = {"out.shifted_labels": labels, "out.loss_mask": mask.double()}
    for short, average in (("token_mean", "token_mean"), ("seq_mean", "sequence_mean")):
        method = build_method("word_kd", kd_ratio=0.5, average=average)
        for name, title in (("ce", "ce"), ("kd", "fkl")):
            loss = term(method, name, batch, **signals).mean()
            results[f"out.{title}_{short}"] = loss
            found = gradients(loss, {"student_logits": student})
            results[f"grad.student_logits.{title}_{short}"] = found["grad.student_logits"]
    tokens = term(build_method("word_kd"), "ce", batch, **signals)
    divergences = term(build_method("word_kd"), "kd", batch, **signals)
    logprobs = -tokens.values
    return results | {
        "out.target_logprob": logprobs,
        "out.seq_logprob_sum": logprobs.sum(-1),
        "out.n_tokens": mask.sum(-1).double(),
        "out.fkl_sum_over_num_items": divergences.total() / case.config["num_items_in_batch"],
    }


def _chosen(case: Case) -> dict[str, dict[str, Any]]:
    """The divergences of the file by its names."""
    config = case.config
    named: dict[str, dict[str, Any]] = {
        "fkl": {"name": "forward_kl"},
        "fkl_xent": {"name": "cross_entropy"},
        "rkl": {"name": "reverse_kl"},
        # The file's coefficient is that of reverse KL, as in DistiLLM's code.
        "symkl": {"name": "jeffreys", "forward": 1 - config["symkl_lambda"]},
        "skl": {"name": "skew_kl", "alpha": config["skew_alpha"]},
        "srkl": {"name": "skew_rkl", "alpha": config["skew_alpha"]},
        "tvd": {"name": "total_variation"},
        "akl": {"name": "adaptive_kl", "mu": config["akl_mu"]},
    }
    named |= {f"jsd_b{beta}": {"name": "jsd", "beta": beta} for beta in config["jsd_betas"]}
    named |= {f"ab_{a}_{b}": {"name": "alpha_beta", "alpha": a, "beta": b} for a, b in config["ab_pairs"]}
    return named


@replays("token-level divergences for LM distillation")
def divergences(case: Case) -> dict[str, Tensor]:
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    mask, temperature = case.input("mask"), case.config["temperature"]
    batch = token_batch(torch.zeros_like(mask), mask)
    everything = token_batch(torch.zeros_like(mask))
    signals = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    log_p, log_q = (teacher / temperature).log_softmax(-1), (student.detach() / temperature).log_softmax(-1)
    results = {"out.akl_head_weight": head_weight(log_p, log_q, mu=case.config["akl_mu"]).squeeze(-1)}
    for title, choice in _chosen(case).items():
        method = build_method("word_kd", divergence=choice, temperature=temperature)
        loss = term(method, "kd", batch, **signals).mean()
        results[f"out.loss.{title}"] = loss
        results[f"out.pertoken.{title}"] = term(method, "kd", everything, **signals).values
        results[f"grad.student_logits.{title}"] = gradients(loss, {"student_logits": student})["grad.student_logits"]
    return results


@replays("GKD generalized JSD")
def gkd(case: Case) -> dict[str, Tensor]:
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    batch = token_batch(case.input("labels"))
    signals = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    results: dict[str, Tensor] = {}
    for beta in case.config["betas"]:
        method = build_method("gkd", beta=beta, temperature=case.config["temperature"])
        found = term(method, "jsd", batch, **signals)
        results[f"out.loss.b{beta}"] = found.mean()
        results[f"out.loss_num_items.b{beta}"] = found.total() / case.config["num_items_in_batch"]
        everything = token_batch(torch.zeros_like(batch["labels"]))
        results[f"out.pertoken.b{beta}"] = term(method, "jsd", everything, **signals).values
        results[f"grad.student_logits.b{beta}"] = gradients(found.mean(), {"student_logits": student})[
            "grad.student_logits"
        ]
    nothing = token_batch(torch.full_like(batch["labels"], -100))
    empty = term(build_method("gkd"), "jsd", nothing, **signals).mean()
    assert empty.requires_grad
    return results | {"out.loss_all_masked": empty}


@replays("f-divergence family on student-sampled prefixes")
def f_divergences(case: Case) -> dict[str, Tensor]:
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    tokens, mask = case.input("tokens"), case.input("mask")
    batch = token_batch(tokens, mask, on_policy=torch.ones(len(tokens)))
    signals = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    renamed = {"tvd": "total_variation"}
    ours, theirs = (token_log_probabilities(s, tokens, mask) for s in signals.values())
    results = {
        "out.token_advantage": theirs - ours,
        "out.reward_to_go": reward_to_go(theirs - ours, mask),
    }
    for title in case.config["generators"]:
        alpha = title.startswith("alpha")
        choice = {"name": "alpha", "alpha": case.config["alpha"]} if alpha else renamed.get(title, title)
        method = build_method("word_kd", divergence=choice)
        found = term(method, "kd", batch, **signals)
        results[f"out.pertoken.{title}"] = found.values
        results[f"out.loss_token_mean.{title}"] = found.mean()
        results[f"out.loss_seq_sum.{title}"] = found.total() / len(tokens)
        results[f"grad.student_logits.{title}"] = gradients(found.mean(), {"student_logits": student})[
            "grad.student_logits"
        ]
    return results


@replays("sparse teacher logits: top-k, ghost bucket, label residual, Random Sampling KD")
def sparse(case: Case) -> dict[str, Tensor]:
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    labels, mask = case.input("labels"), case.input("mask")
    kept = top_k(teacher, case.config["top_k"])
    classes, power = student.shape[-1], case.config["proposal_power"]
    truncated = Signals(topk=TopK(kept.logprobs, kept.indices, kept.tail, classes, kept.logsumexp))
    readings = {
        "topk_raw": "raw",
        "topk_teacher_renorm": "teacher_renormalized",
        "topk_both_renorm": "both_renormalized",
        "ghost": "tail",
        "label_residual": "label_residual",
    }
    runs = {title: (build_method("word_kd", sparse=reading), truncated) for title, reading in readings.items()}
    draws = Draws(case.input("rs_ids"), case.input("rs_counts"))
    every = Draws(torch.arange(classes).expand_as(teacher), case.input("is_counts"))
    plain = build_method("word_kd")
    for title, drawn, weights in (
        ("rs_kd", draws, importance_weights(teacher, draws)),
        ("rs_kd_is", every, importance_weights(teacher, every, power=power)),
        ("rs_kd_is_selfnorm", every, importance_weights(teacher, every, power=power, self_normalized=True)),
    ):
        runs[title] = plain, Signals(sampled=Sampled(drawn.indices, weights, classes))
    runs["full_xent"] = build_method("word_kd", divergence="cross_entropy"), Signals(logits=teacher)
    results = {
        "out.topk_ids": kept.indices,
        "out.topk_logprobs": kept.logprobs,
        "out.teacher_tail_mass": kept.tail.exp(),
        "out.loss.ghost_T2_distillkit": _tempered_tail(kept.logprobs, kept.indices, kept.tail, student, mask),
    }
    for title, (method, target) in runs.items():
        signals = {"student": Signals(logits=student), "teacher": target}
        loss = term(method, "kd", token_batch(labels, mask), **signals).mean()
        results[f"out.loss.{title}"] = loss
        everything = token_batch(labels, torch.ones_like(mask))
        results[f"out.pertoken.{title}"] = term(method, "kd", everything, **signals).values
        results[f"grad.student_logits.{title}"] = gradients(loss, {"student_logits": student})["grad.student_logits"]
    return results


def _tempered_tail(logprobs: Tensor, indices: Tensor, tail: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """What comes of raising the tail's mass to a power as if it were one class, which limbeck refuses to do."""
    pieces = torch.cat([logprobs, tail.unsqueeze(-1)], -1) / 2
    pieces = pieces - pieces.logsumexp(-1, keepdim=True)
    loss = top_k_loss(divergence("forward_kl"), pieces[..., :-1], indices, pieces[..., -1], temperature=2.0,
                      stored_temperature=2.0)  # fmt: skip
    values = token_losses(student.detach(), {"kd": loss}, mask=mask)["kd"]
    return values.sum() / mask.sum()


@replays("Speculative KD interleaved sampling")
def speculative(case: Case) -> dict[str, Tensor]:
    student, teacher = case.input("student_bigram_logits"), case.input("teacher_bigram_logits")
    ours, theirs = case.input("u_student"), case.input("u_teacher")
    contexts = [case.input("first_context")]
    steps = []
    for position in range(ours.shape[1]):
        before = contexts[-1]
        steps.append(
            interleave(
                student[before], teacher[before], ours[:, position], theirs[:, position], top_k=case.config["top_k"]
            )
        )
        contexts.append(steps[-1].tokens)
    prefixes = torch.stack(contexts[:-1], 1)
    tokens = torch.stack([s.tokens for s in steps], 1)
    signals = {"student": Signals(logits=student[prefixes]), "teacher": Signals(logits=teacher[prefixes])}
    accepted = torch.stack([s.accepted for s in steps], 1).double()
    return {
        "out.tokens": tokens,
        "out.proposals": torch.stack([s.proposals for s in steps], 1),
        "out.accepted": accepted,
        "out.accept_rate": accepted.mean(),
        "out.fkl": term(build_method("speculative_kd"), "kd", token_batch(tokens), **signals).mean(),
    }


@replays("TAID: temporally adaptive interpolated distillation")
def taid(case: Case) -> dict[str, Tensor]:
    config, mask, teacher = case.config, case.input("mask"), case.input("teacher_logits")
    students = case.input("student_logits", requires_grad=True)
    method = build_method(
        "taid", start=config["t_start"], end=config["t_end"], step_size=config["alpha"], momentum=config["beta"]
    )
    assert isinstance(method, TAID)
    method.double().train()
    batch = token_batch(torch.zeros_like(mask), mask)
    rows: dict[str, list[Tensor]] = {name: [] for name in ("t", "momentum", "prev_loss", "loss_kl")}
    found = []
    for step, logits in enumerate(students.unbind()):
        loss = term(method, "kl", batch, student=Signals(logits=logits), teacher=Signals(logits=teacher)).mean()
        found.append(torch.autograd.grad(loss, students, retain_graph=True)[0][step])
        rows["loss_kl"].append(loss)
        method.after_step(Progress(step + 1, config["num_train_steps"], 1))
        rows["t"].append(method.share.clone())
        rows["momentum"].append(method.trend.clone())
        rows["prev_loss"].append(method.previous.clone())
    results = {f"out.{name}": torch.stack(values) for name, values in rows.items()}
    return results | {"out.loss_ce": results["out.prev_loss"], "grad.student_logits": torch.stack(found)}


@replays("FIRST: top-k trustworthy distillation and calibration metrics")
def first(case: Case) -> dict[str, Tensor]:
    config, mask = case.config, case.input("mask")
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    batch = token_batch(torch.zeros_like(mask), mask)
    signals = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    results: dict[str, Tensor] = {}
    for title, calibration in (
        ("raw_renorm", "none"),
        ("label_smoothing", "label_smoothing"),
        ("temperature_on_probs", "probability_temperature"),
        ("temperature_on_logits", "logit_temperature"),
    ):
        method = build_method(
            "first",
            k=config["top_k"],
            calibration=calibration,
            temperature=config["temperature_c"],
            smoothing=config["label_smoothing_delta"],
            eps=config["norm_epsilon"],
        )
        assert isinstance(method, FIRST)
        logprobs, indices = method.kept(signals["teacher"])
        loss = term(method, "kd", batch, **signals).mean()
        results[f"out.loss.{title}"] = loss
        results[f"out.target.{title}"] = method.target(logprobs)
        results[f"grad.student_logits.{title}"] = gradients(loss, {"student_logits": student})["grad.student_logits"]
    return results | {
        "out.topk_ids": indices,
        "out.topk_probs": logprobs.exp(),
        "out.topk_mass": logprobs.exp().sum(-1),
        "out.student_topk_probs": student.softmax(-1).gather(-1, indices),
        **_calibration(case.input("confidence"), case.input("correct"), config["ece_bins"]),
    }


def _calibration(confidence: Tensor, correct: Tensor, bins: int) -> dict[str, Tensor]:
    right = correct.to(confidence.dtype)
    curve = binned_confidence(confidence, right, bins=bins)
    gap = calibration_gap(curve)
    columns = (curve.samples.to(confidence.dtype), curve.accuracy, curve.confidence)
    return {
        "out.ece": gap,
        "out.accuracy": right.mean(),
        "out.trust_score": right.mean() - gap,
        "out.ece_bins": torch.stack(columns, -1).nan_to_num(0.0),
    }


@replays("REDI objective")
def redi(case: Case) -> dict[str, Tensor]:
    config = case.config
    leaves = {name: case.input(name, requires_grad=True) for name in ("chosen_logits", "rejected_logits")}
    other = token_batch(case.input("rejected_labels"))
    batch = token_batch(case.input("chosen_labels"), rejected_labels=other["labels"], rejected_mask=other["mask"])
    student = Signals(logits=leaves["chosen_logits"], views={"rejected": Signals(logits=leaves["rejected_logits"])})

    def parts(fade: float) -> dict[str, Tensor]:
        terms = build_method("redi", fade=fade)(batch, student=student)
        return {name: as_term(value).values for name, value in terms.items()}

    plain = parts(0.0)
    used = parts(config["neg_weighting_gamma"] if config["use_neg_weighting"] else 0.0)
    each = config["chosen_coef"] * used["chosen"] + config["alpha"] * used["rejected"]
    right, wrong = -plain["chosen"], plain["rejected"]
    return {
        "out.chosen_logp_mean": right,
        "out.rejected_logp_mean": wrong,
        "out.per_example": each,
        "out.loss": each.mean(),
        "out.loss_symmetric": (wrong - right).mean(),
        "out.loss_simpo_b2_g1": preference_loss(2 * (right - wrong) - 1),
        **gradients(each.mean(), leaves),
    }


@replays("ADPA / DCKD")
def adpa(case: Case) -> dict[str, Tensor]:
    config = case.config
    leaves = {name: case.input(name, requires_grad=True) for name in ("student_w", "student_l", "student_y")}
    rejected, sampled = token_batch(case.input("labels_l")), token_batch(case.input("labels_y"))
    batch = token_batch(
        case.input("labels_w"),
        rejected_labels=rejected["labels"],
        rejected_mask=rejected["mask"],
        sampled_labels=sampled["labels"],
        sampled_mask=sampled["mask"],
    )

    def seen(default: Tensor, **views: Tensor) -> Signals:
        return Signals(logits=default, views={name: Signals(logits=v) for name, v in views.items()})

    student = seen(leaves["student_w"], rejected=leaves["student_l"], sampled=leaves["student_y"])
    aligned = seen(case.input("teacher_w"), rejected=case.input("teacher_l"), sampled=case.input("dpo_y"))
    reference = seen(case.input("teacher_w"), sampled=case.input("ref_y"))
    dckd, method = build_method("dckd", alpha=config["dckd_alpha"]), build_method("adpa", gamma=config["adpa_gamma"])
    first = dckd(batch, student=student, teacher=aligned)
    second = method(batch, student=student, teacher=aligned, reference=reference)
    dual, guided = total(dckd, first), total(method, second)
    results = {
        "out.ce": as_term(first["ce"]).mean(),
        "out.kl_w": as_term(first["chosen"]).mean(),
        "out.kl_l": as_term(first["rejected"]).mean(),
        "out.loss_dckd": dual,
        "out.advantage": case.input("dpo_y").log_softmax(-1) - case.input("ref_y").log_softmax(-1),
        "out.token_value": -as_term(second["advantage"]).values,
        "out.value": -as_term(second["advantage"]).mean(),
        "out.loss_adpa": guided,
        **_sparse_values(case, leaves["student_y"], sampled["mask"]),
    }
    for title, loss, names in (
        ("dckd", dual, ("student_w", "student_l")),
        ("adpa", guided, ("student_w", "student_y")),
    ):
        found = gradients(loss, {name: leaves[name] for name in names})
        results |= {f"{name}.{title}": value for name, value in found.items()}
    return results


def _sparse_values(case: Case, student: Tensor, mask: Tensor) -> dict[str, Tensor]:
    kept, other = (top_k(case.input(name), case.config["sparse_top_k"]) for name in ("dpo_y", "ref_y"))
    found = sparse_advantage(kept.logprobs, kept.indices, other.logprobs, other.indices)

    losses = {"advantage": SparseAdvantageLoss(*found)}
    value = -token_losses(student.detach(), losses, mask=mask)["advantage"].sum() / mask.sum()
    # The authors' loader takes advantages for probabilities and cuts them, also those of classes that were not kept.
    cut = torch.zeros_like(student).scatter(-1, found.indices, found.values).clamp(1e-8, 1 - 1e-8)

    return {
        "out.sparse_indices": found.indices,
        "out.sparse_margins": found.values,
        "out.sparse_value": value,
        "out.sparse_value_clamped": expected_advantage(student.log_softmax(-1), cut)[mask].mean(),
    }
