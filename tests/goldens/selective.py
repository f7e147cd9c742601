"""Adapters of methods for sequences that select tokens, answers or temperatures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from goldens.drive import total
from goldens.replay import Case, gradients, replays
from goldens.sequence import term, token_batch
from limbeck.functional.divergence_registry import divergence
from limbeck.functional.plackett_luce import plackett_luce
from limbeck.functional.privacy import exposure, swing_target
from limbeck.functional.sequences import entropy, next_tokens, sequence_means, spread_hits
from limbeck.methods.base import build_method
from limbeck.methods.sequence.distillm2 import DistiLLM2
from limbeck.methods.sequence.opsd import OPSD
from limbeck.methods.sequence.swing import Swing
from limbeck.methods.sequence.tsd_kd import TSDKD
from limbeck.schedules import Progress, weight_at
from limbeck.selection import PoolSignals
from limbeck.signals import Batch, Signals, as_term


@replays("TSD-KD token-selective dual KD (paper-faithful)")
def tsd_kd(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    batch = token_batch(case.input("labels"))
    mask = batch["mask"]
    method = build_method(
        "tsd_kd",
        candidates=config["k"],
        beta=config["beta"],
        opening_fraction=config["opener_fraction"],
        uncertain_fraction=config["em_fraction"],
        alpha=config["alpha"],
        gate_temperature=config["gate_temperature"],
        temperature=config["jsd_temperature"],
        average="token_mean",
    )
    assert isinstance(method, TSDKD)
    signals = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    terms = method(batch, **signals)
    parts = {name: as_term(terms[name]).mean() for name in ("ranking", "jsd", "entropy")}
    loss = total(method, terms)
    ours, theirs = entropy(student.detach()), entropy(teacher)
    tokens = PoolSignals(entropy={"student": ours, "teacher": theirs}, mask=mask)
    candidates, order = method.ranked(student, teacher)
    scores = student.detach().gather(-1, candidates)
    tempered = [x / config["jsd_temperature"] for x in (teacher, student.detach())]
    jsd = divergence("jsd", beta=config["beta"])(*(x.log_softmax(-1) for x in tempered))
    leaves = {"student_logits": student}
    found = {name: gradients(part, leaves)["grad.student_logits"] for name, part in parts.items()}
    return {
        "out.student_entropy": ours,
        "out.teacher_entropy": theirs,
        "out.opener": method.opener(tokens).share.double(),
        "out.candidates": candidates,
        "out.teacher_order": order,
        "out.pl_nll": plackett_luce(scores, order, reduction="none"),
        "out.gate": method.surer(PoolSignals(entropy=tokens.entropy)).share,
        "out.jsd": jsd,
        "out.high_entropy": method.uncertain(tokens).share.double(),
        "out.loss_indirect": parts["ranking"],
        "out.loss_direct": parts["jsd"],
        "out.loss_em": parts["entropy"],
        "out.loss": loss,
        "out.pl_nll_official_direction": plackett_luce(scores, order.flip(-1), reduction="none"),
        "out.loss_official_code": _released_tsd_kd(case),
        **gradients(loss, leaves),
        "grad.student_logits.indirect": found["ranking"],
        "grad.student_logits.direct": found["jsd"],
        "grad.student_logits.em": found["entropy"],
    }


def _released_tsd_kd(case: Case) -> Tensor:
    """What the authors' code computes, from limbeck's parts.

    Ten candidates in the reversed order; an opening found over the batch's tokens in a row, without the token that
    completes it, its length then used for every sequence; the gate without temperature; entropy of all tokens above a
    low quantile, of masked ones too. All of tempered logits, quantile and opening in single precision.
    """
    config, mask = case.config, case.input("labels") != -100
    student, teacher = (case.input(f"{side}_logits") / config["jsd_temperature"] for side in ("student", "teacher"))
    ours, theirs = entropy(student), entropy(teacher)
    if not mask.any():
        return torch.full((), torch.nan)
    valid, fraction = ours[mask].float(), config["opener_fraction"]
    length = int(((valid / valid.sum()).cumsum(0) >= fraction).float().argmax())
    candidates = student.topk(min(10, student.shape[-1]), dim=-1).indices
    worst_first = teacher.gather(-1, candidates).argsort(dim=-1)
    ranking = plackett_luce(student.gather(-1, candidates), worst_first, reduction="none")
    opened = ranking[:, :length][mask[:, :length]]
    jsd = divergence("jsd", beta=config["beta"])(teacher.log_softmax(-1), student.log_softmax(-1))
    direct = (torch.sigmoid(ours - theirs) * jsd)[mask].mean()
    uncertain = ours[ours >= torch.quantile(valid, fraction)].mean()
    return config["alpha"] * opened.sum() / (len(opened) + 1e-8) + direct + uncertain


@replays("OPSD on-policy self-distillation losses")
def opsd(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    batch = token_batch(case.input("labels"))
    signals = {"student": Signals(logits=student), "teacher": Signals(logits=teacher)}
    results: dict[str, Tensor] = {}

    def add(title: str, short: str, **options: Any) -> None:
        method = build_method("opsd", temperature=config["temperature"], **options)
        loss = term(method, "distill", batch, **signals).mean()
        results[f"out.{title}"] = loss
        results[f"grad.student_logits.{short}"] = gradients(loss, {"student_logits": student})["grad.student_logits"]

    for beta in config["betas"]:
        add(f"loss.b{beta}", f"b{beta}", beta=beta)
        add(f"loss_topk.b{beta}", f"topk.b{beta}", beta=beta, top_k=config["top_k"])
        for per in ("token", "entry"):
            add(f"loss_clip_{per}.b{beta}", f"clip_{per}.b{beta}", beta=beta, clip=config["token_clip"], clip_per=per)
    add("loss_sampled_token", "sampled_token", objective="sampled_token")
    method = build_method("opsd", temperature=config["temperature"])
    assert isinstance(method, OPSD)
    everywhere = token_batch(batch["labels"].clamp(min=0))
    ours, theirs = (method.log_probabilities(signals[role], everywhere).detach() for role in ("student", "teacher"))
    average = [row := case.input("ema_weights")[0]]
    for weights in case.input("ema_weights")[1:]:
        average.append(row := config["ema_decay"] * row + (1 - config["ema_decay"]) * weights)
    return results | {"out.advantage": (theirs - ours) * batch["mask"], "out.ema_after_each_step": torch.stack(average)}


@replays("DistiLLM-2 contrastive skew KL with curriculum alpha")
def distillm2(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    labels, mask = next_tokens(case.input("labels"))
    half = len(student) // 2
    ours, theirs = student[:, :-1], teacher[:, :-1]
    method = build_method(
        "distillm2",
        skew=config["base_alpha_1"],
        generated_skew=config["base_alpha_2"],
        adaptive_skew=True,
        growing_weight=config["gradual_beta"],
        least_skew=config["alpha_min"],
        detach_skew=False,
    )
    assert isinstance(method, DistiLLM2)
    method.double()
    method.anchors.copy_(torch.tensor([config["logp_logq"], config["logq_logp"]], dtype=torch.float64))

    def run(first: slice, second: slice) -> tuple[Batch, dict[str, Signals]]:
        batch = token_batch(labels[first], mask[first], generated_labels=labels[second], generated_mask=mask[second])
        views = [Signals(logits=x[first], views={"generated": Signals(logits=x[second])}) for x in (ours, theirs)]
        return batch, dict(zip(("student", "teacher"), views))

    where = Progress(config["global_step"], config["max_steps"], 1)
    batch, signals = run(slice(0, half), slice(half, None))
    terms = method(batch, **signals)
    loss = total(method, terms, progress=where)
    every, all_signals = run(slice(None), slice(None))
    each = {name: as_term(value).values for name, value in method(every, **all_signals).items()}
    chosen = labels.clamp(min=0).unsqueeze(-1)
    means = [sequence_means(x.log_softmax(-1).gather(-1, chosen).squeeze(-1), mask) for x in (ours.detach(), theirs)]
    return {
        "out.avg_logq": means[0],
        "out.avg_logp": means[1],
        "out.alpha1": method.shares("skew_kl", *means),
        "out.alpha2": method.shares("skew_rkl", *means),
        "out.skl_seq": each["skew_kl"],
        "out.srkl_seq": each["skew_rkl"],
        "out.beta": torch.tensor(weight_at(method.weights["skew_rkl"], where), dtype=torch.float64),
        "out.loss": loss,
        **gradients(loss, {"student_logits": student}),
    }


@replays("Swing distillation (reconstruction)")
def swing(case: Case) -> dict[str, Tensor]:
    config = case.config
    student, teacher = case.input("student_logits", requires_grad=True), case.input("teacher_logits")
    mask, hits, noise = case.input("mask"), case.input("privacy_hits"), case.input("noise")
    method = build_method(
        "swing",
        lowest=config["t_min"],
        highest=config["t_max"],
        decay=config["decay"],
        noise=config["noise_mechanism"],
        noise_scale=config["noise_scale"],
        floor=config["prob_floor"],
    )
    assert isinstance(method, Swing)
    method.noise = lambda *_: noise  # type: ignore[method-assign, assignment]
    batch = token_batch(torch.zeros_like(mask), mask, privacy_hits=hits)
    found = term(method, "kd", batch, student=Signals(logits=student), teacher=Signals(logits=teacher))
    score = spread_hits(hits, decay=config["decay"])
    temperature = method.temperatures(score)
    flags = mask.bool()
    seen = exposure(case.input("candidate_nll"), float(case.input("canary_nll")))
    return {
        "out.score": score,
        "out.temperature": temperature,
        "out.target": swing_target(teacher, temperature, score, noise, floor=config["prob_floor"]),
        "out.loss": found.mean(),
        "out.loss_T2": (found.values * temperature**2)[flags].mean(),
        "out.loss_tmin2": found.mean() * config["t_min"] ** 2,
        "out.rank": torch.tensor(seen.rank),
        "out.exposure_rank": torch.tensor(seen.bits, dtype=torch.float64),
        "out.exposure_extrapolated": torch.tensor(seen.extrapolated, dtype=torch.float64),
        **gradients(found.mean(), {"student_logits": student}),
    }
