"""The lean loss head equals the loss of whole logits, whatever the chunks, the head and the form of the target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from language.spoken import Largest
from limbeck.functional.divergence_registry import divergence
from limbeck.functional.loss_head import projected_token_losses, token_losses
from limbeck.functional.output_layer import project
from limbeck.functional.sampled_targets import SampledLoss
from limbeck.functional.sparse_targets import top_k, top_k_loss
from limbeck.functional.token_losses import LabelLoss, TokenLoss, divergence_loss
from limbeck.signals import Head, Hidden

B, T, D, V = 3, 7, 8, 37
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "padded": {"vocabulary": V - 4},
    "softcap": {"softcap": 5.0},
    "scale": {"scale": 0.7},
    "adapter": {"adapter": True},
    "everything": {"bias": True, "vocabulary": V - 4, "softcap": 5.0, "scale": 1.3, "adapter": True},
}
WEIGHTS = {"ce": 0.3, "kd": 0.7}


def _case(kind: str = "everything", dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    options = dict(HEADS[kind])

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    leaves = [leaf(B, T, D), leaf(V, D)]
    if options.pop("bias", False):
        leaves.append(leaf(V))
        options["bias"] = leaves[-1]
    if options.pop("adapter", False):
        leaves += [leaf(4, D), leaf(V, 4)]
        options["adapter"] = (leaves[-2], leaves[-1], 0.3)
    head = Head(leaves[1], **options)
    mask = torch.rand(B, T, generator=generator) > 0.3
    labels = torch.randint(0, head.classes, (B, T), generator=generator).masked_fill(~mask, -100)
    teacher = 2 * torch.randn(B, T, head.classes, generator=generator, dtype=torch.float64).to(dtype)
    return {"leaves": leaves, "head": head, "mask": mask, "labels": labels, "teacher": teacher}


def _losses(case: dict[str, Any], name: str = "forward_kl", temperature: float = 2.0) -> dict[str, TokenLoss]:
    kd = divergence_loss(divergence(name), case["teacher"], temperature=temperature, scale_by_t2=True)
    return {"ce": LabelLoss(case["labels"]), "kd": kd}


def _total(values: dict[str, Tensor], mask: Tensor, weights: dict[str, float] = WEIGHTS) -> Tensor:
    return torch.stack([w * values[n].sum() / mask.sum() for n, w in weights.items()]).sum()


def _oracle(case: dict[str, Any], name: str = "forward_kl", temperature: float = 2.0) -> tuple[Tensor, list[Tensor]]:
    """The loss of the whole logits by autograd."""
    z = case["head"](case["leaves"][0])
    nll = -z.log_softmax(-1).gather(-1, case["labels"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    log_p, log_q = ((x / temperature).log_softmax(-1) for x in (case["teacher"], z))
    kd = temperature**2 * divergence(name)(log_p, log_q)
    zero = z.new_zeros(())
    loss = _total({"ce": torch.where(case["mask"], nll, zero), "kd": torch.where(case["mask"], kd, zero)}, case["mask"])
    return loss, list(torch.autograd.grad(loss, case["leaves"]))


def _lean(case: dict[str, Any], losses: dict[str, TokenLoss], **options: Any) -> tuple[Tensor, list[Tensor]]:
    values = projected_token_losses(case["leaves"][0], case["head"], losses, mask=case["mask"], **options)
    loss = _total(values, case["mask"])
    return loss, list(torch.autograd.grad(loss, case["leaves"]))


def _close(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], tolerance: float) -> None:
    assert abs(ours[0] - theirs[0]).item() <= tolerance * abs(theirs[0]).item()
    for mine, other in zip(ours[1], theirs[1]):
        assert (mine - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk_bytes", [1, 3 * V * 8, 10**9])
def test_any_head_in_any_chunks_is_the_dense_oracle(kind: str, chunk_bytes: int) -> None:
    case = _case(kind)
    lean = _lean(case, _losses(case), weights=WEIGHTS, chunk_bytes=chunk_bytes, compiled=False)
    _close(lean, _oracle(case), 1e-12)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_rkl", "adaptive_kl", "total_variation"])
def test_single_precision_is_within_a_millionth_of_the_double_precision_oracle(name: str) -> None:
    case = _case(dtype=torch.float32)
    double = {**_case(), "teacher": case["teacher"].double()}
    double["leaves"] = [leaf.detach().double().requires_grad_() for leaf in case["leaves"]]
    h = case["head"]
    low, high = double["leaves"][3:5]
    double["head"] = Head(
        double["leaves"][1], double["leaves"][2], h.scale, h.softcap, h.vocabulary, (low, high, h.adapter[2])
    )
    loss, gradients = _lean(case, _losses(case, name), weights=WEIGHTS, chunk_bytes=900, compiled=False)
    _close((loss.double(), [g.double() for g in gradients]), _oracle(double, name), 1e-6)


def test_chunks_do_not_move_a_half_precision_result() -> None:
    """Peers' bug 41: sums rounded to half precision at every chunk drift."""
    case = _case("plain", dtype=torch.bfloat16)
    whole = _lean(case, _losses(case), weights=WEIGHTS, chunk_bytes=10**9, compiled=False)
    cut = _lean(case, _losses(case), weights=WEIGHTS, chunk_bytes=1, compiled=False)
    assert abs(whole[0] - cut[0]).item() <= 1e-6 * abs(whole[0]).item()
    for one, other in zip(whole[1], cut[1]):
        assert (one.float() - other.float()).norm() <= 1e-3 * one.float().norm()


@pytest.mark.parametrize("gradient", ["forward", "backward"])
def test_other_proportions_than_announced_are_worked_out_again(gradient: str) -> None:
    case = _case()
    expected = _oracle(case)
    # A weight of nothing was announced, so its derivative was left out.
    for announced in ({"ce": 5.0, "kd": 0.1}, {"ce": 0.0, "kd": 1.0}, {"ce": 0.0, "kd": 0.0}):
        wrong = _lean(case, _losses(case), weights=announced, gradient=gradient, compiled=False)
        _close(wrong, expected, 1e-12)
    values = projected_token_losses(case["leaves"][0], case["head"], _losses(case), mask=case["mask"], compiled=False)
    uneven = torch.linspace(0.1, 2.0, B * T, dtype=torch.float64).view(B, T)
    found = torch.autograd.grad((values["kd"] * uneven).sum(), case["leaves"], retain_graph=True)
    again = torch.autograd.grad((values["kd"] * uneven).sum(), case["leaves"])
    z = case["head"](case["leaves"][0])
    kd = 4 * divergence("forward_kl")((case["teacher"] / 2).log_softmax(-1), (z / 2).log_softmax(-1))
    theirs = torch.autograd.grad((kd * uneven)[case["mask"]].sum(), case["leaves"])
    for mine, repeated, other in zip(found, again, theirs):
        torch.testing.assert_close(mine, other)
        torch.testing.assert_close(repeated, other)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_term_without_weight_is_told_and_not_differentiated(compiled: bool) -> None:
    case = _case()
    given = (case["leaves"][0], case["head"], _losses(case))
    quiet = projected_token_losses(*given, mask=case["mask"], weights={"ce": 0.0, "kd": 1.0}, compiled=compiled)
    plain = projected_token_losses(*given, mask=case["mask"], gradient="backward", compiled=False)
    torch.testing.assert_close(quiet, plain)
    for mine, other in zip(*(torch.autograd.grad(v["kd"].mean(), case["leaves"]) for v in (quiet, plain))):
        torch.testing.assert_close(mine, other)


def test_a_frozen_head_gets_no_gradient_and_a_frozen_student_trains_its_adapter() -> None:
    case = _case("adapter")
    states, weight, low, high = case["leaves"]
    expected = dict(zip("swlh", _oracle(case)[1]))
    weight.requires_grad_(False)
    values = projected_token_losses(states, case["head"], _losses(case), mask=case["mask"], weights=WEIGHTS)
    _total(values, case["mask"]).backward()
    assert weight.grad is None
    torch.testing.assert_close(states.grad, expected["s"])
    states.requires_grad_(False)
    values = projected_token_losses(states, case["head"], _losses(case), mask=case["mask"], weights=WEIGHTS)
    low.grad = high.grad = None
    _total(values, case["mask"]).backward()
    torch.testing.assert_close(low.grad, expected["l"])
    torch.testing.assert_close(high.grad, expected["h"])


@pytest.mark.parametrize("chunk_bytes", [1, 10**9])
def test_logits_at_hand_give_the_same(chunk_bytes: int) -> None:
    case = _case()
    expected, _ = _oracle(case)
    logits = case["head"](case["leaves"][0])
    values = token_losses(
        logits, _losses(case), mask=case["mask"], weights=WEIGHTS, chunk_bytes=chunk_bytes, compiled=False
    )
    loss = _total(values, case["mask"])
    torch.testing.assert_close(loss, expected)
    for mine, other in zip(torch.autograd.grad(loss, case["leaves"]), _oracle(case)[1]):
        torch.testing.assert_close(mine, other)


def test_every_form_of_target_goes_through_the_head() -> None:
    case = _case()
    states, mask = case["leaves"][0], case["mask"]
    logits = case["head"](states)
    kept = top_k(case["teacher"], 5)
    forms: dict[str, TokenLoss] = {
        "tail": top_k_loss(divergence("jsd"), kept.logprobs, kept.indices, kept.tail),
        "renormalised": top_k_loss(
            divergence("forward_kl"), kept.logprobs, kept.indices, kept.tail, reading="both_renormalized"
        ),
        "sampled": SampledLoss(kept.indices, kept.logprobs.softmax(-1)),
    }
    values = projected_token_losses(states, case["head"], forms, mask=mask, chunk_bytes=1)
    for name, loss in forms.items():
        dense = loss.rule.values(_scores(logits.reshape(B * T, -1)), *loss.targets(slice(None))).view(B, T)
        torch.testing.assert_close(values[name], torch.where(mask, dense, 0.0))
        mine = torch.autograd.grad(values[name].sum(), case["leaves"], retain_graph=True)
        theirs = torch.autograd.grad(dense[mask].sum(), case["leaves"], retain_graph=True)
        for one, other in zip(mine, theirs):
            torch.testing.assert_close(one, other)


def _scores(logits: Tensor) -> Any:
    from limbeck.functional.token_losses import Scores

    return Scores(logits)


def test_masked_positions_may_hold_anything_and_get_no_gradient() -> None:
    """Peers' bug 9: an ignore index that nothing reads."""
    case = _case("plain")
    expected = _lean(case, _losses(case), weights=WEIGHTS)
    with torch.no_grad():
        case["leaves"][0][~case["mask"]] = float("nan")
        case["teacher"][~case["mask"]] = float("inf")
    got = _lean(case, _losses(case), weights=WEIGHTS)
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1][1], expected[1][1])
    assert (got[1][0][~case["mask"]] == 0).all()


def test_nothing_to_learn_gives_zero_with_a_live_graph() -> None:
    """Peers' bug 30: an all-masked batch without a graph, or 0/0."""
    case = _case()
    case["mask"] = torch.zeros(B, T, dtype=torch.bool)
    values = projected_token_losses(case["leaves"][0], case["head"], _losses(case), mask=case["mask"], weights=WEIGHTS)
    assert values["kd"].requires_grad
    assert (values["kd"] == 0).all()
    for gradient in torch.autograd.grad(values["kd"].sum(), case["leaves"]):
        assert (gradient == 0).all()


def test_padding_of_the_vocabulary_changes_nothing() -> None:
    """Peers' bugs 11 and 12: padded rows of a head take part in the softmax."""
    case = _case("plain")
    states, weight = case["leaves"]
    wide = torch.cat([weight, torch.full((5, D), 50.0, dtype=weight.dtype)])
    padded = Head(wide, vocabulary=V)
    ours = projected_token_losses(states, padded, _losses(case), mask=case["mask"])
    theirs = projected_token_losses(states, Head(weight), _losses(case), mask=case["mask"])
    torch.testing.assert_close(ours["kd"], theirs["kd"])


def test_projected_teachers_are_what_the_head_says() -> None:
    case = _case()
    torch.testing.assert_close(
        project(case["leaves"][0], case["head"]), Hidden(case["leaves"][0], case["head"]).logits().detach()
    )


def test_a_divergence_without_a_slope_is_differentiated_by_autograd() -> None:
    from limbeck.functional.divergence_registry import register_divergence

    @register_divergence("test_cubic")
    def cubic(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_p.exp() - log_q.exp()).abs() ** 3

    case = _case()
    _close(
        _lean(case, _losses(case, "test_cubic"), weights=WEIGHTS, chunk_bytes=900), _oracle(case, "test_cubic"), 1e-12
    )


def test_a_split_into_micro_batches_adds_up() -> None:
    """Peers' bugs 1 to 3: sums divided by counts of the wrong batch."""
    case = _case()
    whole = _lean(case, _losses(case), weights=WEIGHTS)
    sums = [torch.zeros_like(leaf) for leaf in case["leaves"]]
    for row in range(B):
        part = {**case, **{key: case[key][row : row + 1] for key in ("mask", "labels", "teacher")}}
        values = projected_token_losses(
            case["leaves"][0][row : row + 1], case["head"], _losses(part), mask=part["mask"]
        )
        loss = _total(values, case["mask"])
        sums = [s + g for s, g in zip(sums, torch.autograd.grad(loss, case["leaves"]))]
    for one, other in zip(sums, whole[1]):
        torch.testing.assert_close(one, other)


def test_shapes_that_do_not_fit_are_named() -> None:
    case = _case()
    states, head = case["leaves"][0], case["head"]
    with pytest.raises(ValueError, match="'ce' has targets for positions"):
        projected_token_losses(states, head, {"ce": LabelLoss(case["labels"][:, 1:])})
    with pytest.raises(ValueError, match="mask"):
        projected_token_losses(states, head, _losses(case), mask=case["mask"][:1])
    with pytest.raises(ValueError, match="vocabulary of 99"):
        projected_token_losses(states, Head(case["leaves"][1], vocabulary=99), _losses(case))
    with pytest.raises(ValueError, match="'forward' or 'backward'"):
        token_losses(case["teacher"], _losses(case), gradient="never")


def test_no_tensor_is_as_large_as_tokens_times_vocabulary() -> None:
    """Peers' bug 42: chunks cut only after everything was widened."""
    tokens, classes = 512, 1024
    states = torch.randn(1, tokens, 4, requires_grad=True)
    weight = torch.randn(classes, 4, requires_grad=True)
    teacher = torch.randn(1, tokens, 4)
    head = Head(weight)
    from limbeck.functional.token_losses import DivergenceLoss, DivergenceRule, rows_of

    loss = DivergenceLoss(
        DivergenceRule(divergence("jsd")), lambda rows: project(rows_of(teacher, rows), head), teacher.shape[:-1]
    )
    sizes = []
    for chunk_bytes in (2**16, 2**17):
        with Largest() as seen:
            values = projected_token_losses(states, head, {"kd": loss}, chunk_bytes=chunk_bytes, compiled=False)
            values["kd"].mean().backward()
        sizes.append(seen.numel)
    assert sizes[0] == 2**14
    assert sizes[1] == 2**15
