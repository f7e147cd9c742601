"""Every cell of the grid runs or says why not; gradients of those that run are right, by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch

from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.divergence_registry import divergence, divergence_names
from limbeck.functional.score_function import is_local, is_of_ratio, sampled_merit
from limbeck.methods.base import build_method
from limbeck.methods.sequence.base import chosen_divergence
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.signals import Batch, Signals, as_term

SOURCES = ("data", "student", "mixed", "teacher")
GRANULARITIES = ("token", "sequence")
ACCESS = ("white_box", "scores", "text", "none")
# Those that are registered while tests run may be anything.
NAMES = [
    name
    for name in divergence_names()
    if divergence(name).contributions.func.__module__ == "limbeck.functional.log_divergences"
]
CELLS = list(itertools.product([*NAMES, None], SOURCES, GRANULARITIES, ACCESS))
V, STEPS = 3, 2
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=STEPS)))


def chain(seed):
    """Logits of the first token [V], and of the second after each first one [V, V]."""
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=numbers, dtype=torch.float64) for shape in ((V,), (V, V))]


def logits_of(parameters):
    """[V * V, 2, V] at every beginning of every sequence."""
    first, second = parameters
    return torch.stack([first.expand(len(SEQUENCES), V), second[SEQUENCES[:, 0]]], 1)


def log_probabilities(parameters):
    """[V * V, 2] of the tokens of every sequence."""
    return logits_of(parameters).log_softmax(-1).gather(-1, SEQUENCES.unsqueeze(-1)).squeeze(-1)


def everything(source, log_q):
    rows = len(SEQUENCES)
    written = {"student": torch.ones(rows), "mixed": torch.arange(rows) % 2}.get(source)
    batch = Batch(
        index=torch.arange(rows),
        labels=SEQUENCES.clone(),
        mask=torch.ones(rows, STEPS, dtype=torch.bool),
        advantage=torch.linspace(-1, 1, rows, dtype=torch.float64),
    )
    if written is not None:
        batch["on_policy"] = written.bool()
    return batch


def signals(access, student, teacher):
    """Both roles, of whom the teacher tells no more than its access says."""
    told = {
        "white_box": {"teacher": Signals(logits=logits_of(teacher))},
        "scores": {"teacher": Signals(logprobs=log_probabilities(teacher))},
    }
    return {"student": Signals(logits=logits_of(student)), **told.get(access, {})}


def made(name, source, granularity, access, **options):
    if access == "none" and source == "student":
        options.setdefault("reward_weight", 1.0)
    return build_method(
        "unified_opd", divergence=name, source=source, granularity=granularity, access=access, **options
    )


def test_every_cell_runs_or_says_why_not():
    runs, refused = [], {}
    for name, source, granularity, access in CELLS:
        student = [p.requires_grad_() for p in chain(0)]
        try:
            method = made(name, source, granularity, access)
        except RecipeError as error:
            refused[name, source, granularity, access] = str(error)
            continue
        terms = method(everything(source, None), **signals(access, student, chain(1)))
        assert set(terms) == set(method.weights)
        loss = sum(as_term(term).mean() for term in terms.values())
        found = torch.autograd.grad(loss, student, allow_unused=True)
        assert torch.isfinite(loss)
        assert all(g is None or torch.isfinite(g).all() for g in found)
        assert any(g is not None and g.abs().max() > 0 for g in found)
        assert method.roles() == (("student", "teacher") if access in ("white_box", "scores") else ("student",))
        runs.append((name, source, granularity, access))
    assert len(runs) + len(refused) == len(CELLS)
    for (name, source, granularity, access), said in refused.items():
        named = f"divergence: {name or 'null'}, source: {source}, granularity: {granularity}, access: {access}: "
        assert named in said, said
        assert "; set " in said, said
    # White-box tokens run for every divergence and source.
    assert {c for c in CELLS if c[0] and c[2:] == ("token", "white_box")} <= set(runs)
    assert {(n, "student", "token", "scores") for n in NAMES if is_local(divergence(n))} <= set(runs)
    assert (None, "student", "sequence", "none") in runs
    assert ("forward_kl", "teacher", "sequence", "text") in runs
    assert ("forward_kl", "data", "token", "none") in runs


def proposed(said):
    """The cell that an error proposes."""
    pairs = said.rsplit("; set ", 1)[1].split(", or ")[0].split(", ")
    return {k: None if v == "null" else float(v) if v.isdigit() else v for k, v in (p.split(": ") for p in pairs)}


def test_what_is_proposed_instead_leads_to_a_cell_that_runs():
    for name, source, granularity, access in CELLS:
        keys = {"divergence": name, "source": source, "granularity": granularity, "access": access}
        for _ in range(4):
            try:
                build_method("unified_opd", **keys)
                break
            except RecipeError as error:
                keys |= proposed(str(error))
        else:
            pytest.fail(f"{name}, {source}, {granularity}, {access}: nothing runs after {keys}")


def true_gradient(chosen, source, granularity, student, teacher):
    log_p, log_q = log_probabilities(teacher), log_probabilities(student)
    if granularity == "sequence":
        whole = divergence(**chosen).contributions(log_p.sum(-1), log_q.sum(-1))
        return torch.autograd.grad(whole.sum(), student)
    weights = (log_q if source == "student" else log_p).detach().sum(-1).exp()
    tokens = divergence(**chosen)(logits_of(teacher).log_softmax(-1), logits_of(student).log_softmax(-1))
    return torch.autograd.grad((weights.unsqueeze(-1) * tokens).sum(), student)


KNOWN = [n for n in NAMES if n != "cross_entropy"]
ESTIMATED = list(itertools.product(KNOWN, ("student", "teacher"), GRANULARITIES, ("white_box", "scores", "text")))


def expected_gradient(method, source, access, student, teacher):
    """Gradient of the loss, expected over all sequences that the source could write."""
    drawn = log_probabilities(student if source == "student" else teacher).detach().sum(-1).exp()
    batch = everything(source, None)
    total = 0.0
    for term in method(batch, **signals(access, student, teacher)).values():
        values = as_term(term).values
        total = total + (drawn * (values.sum(-1) if values.dim() == 2 else values)).sum()
    return torch.autograd.grad(total, student)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_expected_gradients_are_those_of_the_divergence(granularity):
    seen = 0
    for name, source, kind, access in ESTIMATED:
        if kind != granularity:
            continue
        try:
            method = made(name, source, granularity, access)
        except RecipeError:
            continue
        student, teacher = [p.requires_grad_() for p in chain(3)], chain(4)
        found = expected_gradient(method, source, access, student, teacher)
        known = true_gradient({"name": name}, source, granularity, student, teacher)
        for ours, theirs in zip(found, known):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, msg=f"{name} {source} {access}")
        seen += 1
    assert seen >= 18


def test_dense_reverse_kl_of_tokens_lacks_what_follows():
    student, teacher = [p.requires_grad_() for p in chain(3)], chain(4)
    token = expected_gradient(
        made("reverse_kl", "student", "token", "white_box"), "student", "white_box", student, teacher
    )
    whole = expected_gradient(
        made("reverse_kl", "student", "sequence", "white_box"), "student", "white_box", student, teacher
    )
    torch.testing.assert_close(token[1], whole[1])  # nothing follows the last token
    assert (token[0] - whole[0]).abs().max() > 1e-2


def test_nothing_moves_a_student_that_is_its_teacher():
    for name, source, granularity, access in CELLS:
        if access not in ("white_box", "scores") or name in (None, "cross_entropy"):
            continue
        student = [p.requires_grad_() for p in chain(0)]
        try:
            method = made(name, source, granularity, access)
        except RecipeError:
            continue
        if access == "scores" and not is_of_ratio(divergence(name)):
            continue
        terms = method(everything(source, None), **signals(access, student, chain(0)))
        found = torch.autograd.grad(sum(as_term(t).mean() for t in terms.values()), student, allow_unused=True)
        assert all(g is None or g.abs().max() < 1e-12 for g in found), (name, source, granularity, access)


NAMED = [
    (("reverse_kl", "student", "token", "scores"), "on_policy_distillation", {}),
    (("reverse_kl", "student", "token", "white_box"), "gkd", {"beta": 1.0}),
    (({"name": "jsd", "beta": 0.5}, "mixed", "token", "white_box"), "gkd", {"beta": 0.5}),
    (("skew_kl", "data", "token", "white_box"), "word_kd", {"divergence": "skew_kl", "kd_ratio": 1.0}),
    (("forward_kl", "teacher", "token", "text"), "seq_kd", {}),
    (("forward_kl", "data", "token", "none"), "sft", {}),
]


@pytest.mark.parametrize(("cell", "name", "options"), NAMED)
def test_cells_with_names_of_their_own_are_those_methods(cell, name, options):
    batch = everything(cell[1], None)
    batch.pop("advantage")
    gradients = []
    for method in (made(*cell), build_method(name, **options)):
        student = [p.requires_grad_() for p in chain(5)]
        given = signals(cell[3], student, chain(6))
        terms = method(batch, **{role: given[role] for role in method.roles()})
        loss = sum(method.weights[n] * as_term(t).mean() for n, t in terms.items() if method.weights[n])
        gradients.append(torch.autograd.grad(loss, student))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs)


def test_a_reward_beside_a_divergence_is_the_sum_of_both():
    def gradient(**options):
        student = [p.requires_grad_() for p in chain(5)]
        method = build_method("unified_opd", **options)
        given = signals(method.cell.access, student, chain(6))
        terms = method(everything("student", None), **{role: given[role] for role in method.roles()})
        loss = sum(method.weights[n] * as_term(t).mean() for n, t in terms.items())
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, student)])

    cell = {"source": "student", "granularity": "sequence"}
    alone = gradient(**cell, divergence=None, access="none", reward_weight=1.0)
    for access in ("white_box", "scores"):
        both = gradient(**cell, divergence="reverse_kl", access=access, reward_weight=0.5)
        torch.testing.assert_close(both, gradient(**cell, divergence="reverse_kl", access=access) + 0.5 * alone)


def test_merits_of_the_known_divergences():
    log_u = torch.linspace(-3, 3, 13, dtype=torch.float64)
    u, zero = log_u.exp(), torch.zeros_like(log_u)
    known = {
        "reverse_kl": log_u,
        "forward_kl": u - 1,
        "total_variation": 0.5 * torch.sign(u - 1),
        "jsd": 0.5 * torch.log((1 + u) / 2),
    }
    for name, expected in known.items():
        torch.testing.assert_close(sampled_merit(divergence(name), log_u, zero), expected)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        far = torch.tensor([-60.0, 0.0, 60.0], dtype=dtype)
        for name in NAMES:
            if is_local(divergence(name)):
                assert torch.isfinite(sampled_merit(divergence(name), far - 5, far * 0 - 5)).all(), name


def test_what_depends_on_the_ratio_and_what_does_not():
    assert not is_local(divergence("adaptive_kl"))
    assert is_of_ratio(chosen_divergence({"name": "jsd", "beta": 0.3}))
    assert is_local(divergence("alpha_beta"))
    assert not is_of_ratio(divergence("alpha_beta"))


@pytest.mark.parametrize(
    ("source", "flags", "said"),
    [("student", [True, False], "source: mixed"), ("data", [False, True], "source: student or mixed")],
)
def test_a_batch_of_another_source_is_refused(source, flags, said):
    batch = everything(source, None)
    batch["on_policy"] = torch.tensor(flags).repeat(len(SEQUENCES) // 2 + 1)[: len(SEQUENCES)]
    with pytest.raises(NeedsError, match=said):
        made("reverse_kl", source, "token", "white_box")(batch, **signals("white_box", chain(0), chain(1)))


def test_a_temperature_where_samples_are_compared_is_refused():
    with pytest.raises(RecipeError, match="temperature"):
        made("reverse_kl", "student", "token", "scores", temperature=2.0)


SHAPE = {"name": "llama", "layers": 1, "width": 16, "heads": 2}


@pytest.mark.parametrize(
    ("keys", "rollout"),
    [
        ({"divergence": "jsd", "source": "mixed"}, {"probability": 0.5, "unit": "sequence"}),
        ({"divergence": "forward_kl", "source": "student", "access": "scores"}, {}),
        ({"divergence": "total_variation", "source": "student", "granularity": "sequence"}, {}),
        ({"divergence": "forward_kl", "source": "teacher", "access": "text"}, None),
        ({"divergence": "jsd", "source": "teacher", "access": "scores"}, {"policy": "teacher"}),
        (
            {
                "divergence": None,
                "source": "student",
                "granularity": "sequence",
                "access": "none",
                "reward_weight": 1.0,
            },
            {"reward": "maths", "samples": 2},
        ),
        ({"divergence": "forward_kl", "source": "data", "access": "none"}, None),
    ],
)
def test_a_recipe_chooses_a_cell_by_its_keys(keys, rollout):
    with_teacher = keys.get("access", "white_box") != "none"
    loaded = load_recipe(
        {
            "task": "causal-lm",
            "data": {"name": "arithmetic", "options": {"tokenizer": "bytes", "context": 12, "test": 0.1, "count": 12}},
            "roles": {"student": {"model": SHAPE}, **({"teacher": {"model": SHAPE}} if with_teacher else {})},
            "method": {"name": "unified_opd", **keys},
            "transforms": [] if rollout is None else [{"name": "rollout", "max_new_tokens": 3, **rollout}],
            "train": {"epochs": 1, "batch_size": 6, "optimizer": "adamw", "lr": 0.001},
        }
    )
    stage = build_stage(loaded, loaded.stages[0]).stage
    before = [p.detach().clone() for p in stage.parameters()]
    stage.run()
    # A reward may be the same for all completions, which then teach nothing.
    assert keys.get("reward_weight") or any(not torch.equal(a, b) for a, b in zip(before, stage.parameters()))
