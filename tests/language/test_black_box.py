"""A teacher behind a server that reads other tokens than its student: what it tells, and who can learn from it."""

from __future__ import annotations

import json

import pytest
import torch

from language.corpus import loader, tiny, tokenizer
from language.test_cross_tokenizer_alignment import tokens
from language.test_on_policy_grid import CELLS, made
from limbeck.engine.preflight import dry_run
from limbeck.errors import NeedsError, RecipeError
from limbeck.functional.sorted_probabilities import SortedTopRule, sorted_distance
from limbeck.functional.token_losses import Scores
from limbeck.methods.base import build_method
from limbeck.recipes.build import build_stage
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe
from limbeck.signals import Batch, as_term
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.live import FrozenTeacher
from limbeck.teachers.remote import Client, Endpoint, RemoteTeacher
from limbeck.teachers.server import Scorer, TeacherServer

SHAPE = {"name": "llama", "layers": 1, "width": 16, "heads": 2}


@pytest.fixture(scope="module")
def teacher():
    return tiny(3, vocabulary=tokens("byte_level").tokenizer.vocabulary, context=256)


@pytest.fixture(scope="module")
def server(teacher):
    vocabulary = tokens("byte_level").tokenizer.vocabulary
    with TeacherServer(Scorer(teacher, tokens("byte_level").tokenizer, most=vocabulary), "other") as running:
        yield running


def recipe(folder, server, method, *, top=20, data=None, options=None, **changes):
    tokens("byte_level").tokenizer.backend.save_pretrained(folder / "tokenizer")
    own = {"tokenizer": "bytes", "teacher_tokenizer": str(folder / "tokenizer"), "context": 40}
    remote = {"url": server.url, "model": "other", "top": top, "journal": str(folder / "journal")}
    return {
        "task": "causal-lm",
        "data": data or {"name": "persuasion", "limit": {"train": 8, "test": 2}, "options": {**own, **(options or {})}},
        "roles": {"teacher": {"remote": remote}, "student": {"model": SHAPE}},
        "method": method,
        "train": {"epochs": 1, "batch_size": 4, "optimizer": "adamw", "lr": 0.003},
        **changes,
    }


ROLLOUT = [{"name": "rollout", "prompt_tokens": 16, "max_new_tokens": 6}]


@pytest.mark.parametrize("transforms", [[], ROLLOUT], ids=["data", "own words"])
@pytest.mark.parametrize("name", ["on_policy_distillation", "uld"])
def test_what_a_server_says_in_its_own_tokens_is_what_the_model_says(tmp_path, server, teacher, name, transforms):
    vocabulary = tokens("byte_level").tokenizer.vocabulary
    loaded = load_recipe(recipe(tmp_path, server, name, top=vocabulary, transforms=transforms))
    stage = build_stage(loaded, loaded.stages[0]).stage
    batch = stage.first_batch()
    live = FrozenTeacher("teacher", teacher, CausalLM(vocabulary=vocabulary), wanted=frozenset({"hidden|logits"}))
    student = stage.observers["student"](batch)
    method = build_method(name)
    for term, weight in method.weights.items():
        far, near = (
            as_term(method(batch, student, said)[term]).mean()
            for said in (stage.observers["teacher"](batch), live(batch))
        )
        torch.testing.assert_close(far, near, rtol=2e-3, atol=2e-4)
        assert weight > 0
    stage.run()


@pytest.mark.parametrize("method", ["gold", "dskd"])
def test_methods_that_need_whole_distributions_say_so_and_name_those_that_do_not(tmp_path, server, method):
    loaded = load_recipe(recipe(tmp_path, server, method))
    with pytest.raises(RecipeError, match=r"compares whole distributions.*on_policy_distillation.*uld"):
        build_stage(loaded, loaded.stages[0])


def test_text_alone_teaches_a_student_with_other_tokens(tmp_path, server):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n} and", "completion": "x"}) + "\n" for n in range(24))
    )
    written = {
        "name": "generated",
        "options": {
            "of": {"name": "jsonl", "path": str(tmp_path / "prompts.jsonl")}, "tokenizer": "bytes", "context": 60,
            "max_new_tokens": 6, "cut_off": "keep", "folder": str(tmp_path / "texts"), "test": 0.2,
        },
    }  # fmt: skip
    cell = {"name": "unified_opd", "divergence": "forward_kl", "source": "teacher", "access": "text"}
    for number, method in enumerate(("seq_kd", cell)):
        plain = recipe(tmp_path, server, method, data=written)
        if method is cell:
            # Who gives nothing but text is no role of the method.
            assert build_method(**cell).roles() == ("student",)
        finished = run_recipe(plain, out=tmp_path / f"run{number}")
        assert (finished.folder / "student" / "config.json").exists()
    (path,) = (tmp_path / "texts").glob("*.jsonl")
    assert all(json.loads(line)["completion"] for line in path.read_text().splitlines())


@pytest.mark.parametrize("k", [1, 3, 11])
def test_the_largest_probabilities_bound_the_distance_from_below_and_all_of_them_give_it(k):
    numbers = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(50, 7, generator=numbers, dtype=torch.float64)
    log_p = (3 * torch.randn(50, 11, generator=numbers, dtype=torch.float64)).log_softmax(-1)
    kept = log_p.sort(-1, descending=True).values
    rest = (1 - kept[:, :k].exp().sum(-1)).clamp(min=1e-300).log()
    found = SortedTopRule().values(Scores(logits), kept[:, :k], rest)
    whole = sorted_distance(logits.softmax(-1), log_p.exp(), reduction="none")
    assert (found <= whole + 1e-12).all()
    if k == 11:
        torch.testing.assert_close(found, whole)
    else:
        assert (found < whole - 1e-6).any()
    moved = logits.clone().requires_grad_()
    SortedTopRule().values(Scores(moved), kept[:, :k], rest).sum().backward()
    value, slope = SortedTopRule().gradient(Scores(logits), kept[:, :k], rest)
    torch.testing.assert_close(slope, moved.grad)
    torch.testing.assert_close(value, found)


def test_another_temperature_of_the_teacher_than_the_servers_is_refused(tmp_path, server):
    loaded = load_recipe(recipe(tmp_path, server, {"name": "uld", "teacher_temperature": 2.0}))
    with pytest.raises(NeedsError, match="teacher_temperature"):
        build_stage(loaded, loaded.stages[0])


def test_a_server_of_the_datas_tokenizer_is_asked_in_the_datas_tokens(tmp_path):
    with TeacherServer(Scorer(tiny(2, context=128), tokenizer(), most=50), "other") as server:
        loaded = load_recipe(recipe(tmp_path, server, "uld", options={"teacher_tokenizer": "bytes"}))
        stage = build_stage(loaded, loaded.stages[0]).stage
        assert "teacher_inputs" not in stage.first_batch()
        stage.run()


def test_every_cell_of_the_grid_runs_with_what_a_server_tells_or_says_why_not(tmp_path):
    """All divergences, sources, granularities and kinds of access, with a server in the teacher's place."""
    batch = next(loader().epoch(0))
    model = tiny(1)
    student = CausalLM(vocabulary=257).run(model, batch["inputs"], frozenset({"logits"}))
    with TeacherServer(Scorer(tiny(2, context=128), tokenizer(), most=50), "tiny") as server:
        client = Client(Endpoint(server.url, "tiny"), tmp_path / "journal")
        told = RemoteTeacher(client, tokenizer(), top=8)(batch)
    observers = {"student": lambda _: student, "teacher": lambda _: told}
    ran, refused = set(), {}
    for cell in CELLS:
        name, source, granularity, access = cell
        shown = Batch({**batch, "advantage": torch.linspace(-1, 1, batch.size)})
        if source in ("student", "mixed"):
            shown["on_policy"] = torch.ones(batch.size, dtype=torch.bool)
        try:
            method = made(name, source, granularity, access)
            dry_run(method, shown, observers)
            terms = method(shown, **{role: observers[role](shown) for role in method.roles()})
        except (RecipeError, NeedsError) as error:
            refused[cell] = str(error)
            continue
        loss = sum(as_term(term).mean() for term in terms.values())
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients), cell
        assert any(g is not None and g.abs().max() > 0 for g in gradients), cell
        ran.add(cell)
    assert ran | refused.keys() == set(CELLS)
    assert all(len(said) > 60 for said in refused.values())
    # Whatever runs with scores or text alone runs here, and so do distributions token by token: top-k with its tail.
    every = {cell for cell in CELLS if cell not in refused or "method 'unified_opd' with" not in refused[cell]}
    assert {cell for cell in every if cell[3] in ("scores", "text", "none")} <= ran
    assert {(name, "student", "token", "white_box") for name in ("forward_kl", "reverse_kl", "jsd")} <= ran
    # A divergence of sequences with the exact one in each token needs all of its probabilities.
    assert "gives only" in refused["reverse_kl", "student", "sequence", "white_box"]
