from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from docs.blocks import call
from language.corpus import tiny, tokenizer
from limbeck.cli import main
from limbeck.errors import CacheError, RecipeError
from limbeck.recipes.arms import arms_to_check, run_arms
from limbeck.recipes.build import build_stage
from limbeck.recipes.cache import cache_recipe
from limbeck.recipes.check import check_recipe
from limbeck.recipes.load import as_plain, laid_over, load_recipe, read_mapping, shipped
from limbeck.recipes.run import evaluate_run, export_run, run_recipe
from limbeck.report.language import report_arms, show_arms
from limbeck.students.weight_files import save_weights
from limbeck.teachers.server import Scorer, TeacherServer

SHAPE = {"name": "llama", "layers": 4, "width": 32, "heads": 4, "kv_heads": 2}


def recipe(**sections):
    return {
        "task": "causal-lm",
        "data": {
            "name": "persuasion",
            "limit": {"train": 32, "test": 4},
            "options": {"tokenizer": "bytes", "context": 48},
        },
        "roles": {"teacher": {"model": SHAPE}, "student": {"from": "teacher", "layers": 2}},
        "method": {"name": "word_kd", "kd_ratio": 1.0},
        "train": {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 0.003},
        **sections,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small teacher that has really learnt something of the text: its weights and their loss."""
    folder = tmp_path_factory.mktemp("teacher")
    roles = {"student": {"model": SHAPE}}
    data = {**recipe()["data"], "limit": {"train": 640, "test": 16}}
    settings = {"epochs": 1, "batch_size": 16, "optimizer": "adamw", "lr": 0.01}
    finished = run_recipe(recipe(roles=roles, method={"name": "sft"}, data=data, train=settings), out=folder / "run")
    return folder / "run", finished.results["token_loss"]["loss"]


@pytest.fixture(scope="module")
def roles(trained):
    teacher = {"model": SHAPE, "weights": str(trained[0] / "student.safetensors")}
    return {"teacher": teacher, "student": {"from": "teacher", "layers": 2}}


def test_a_trained_teacher_is_better_than_chance_and_its_folder_loads_with_plain_transformers(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, loss = trained
    assert loss < 3.6 < torch.tensor(257.0).log()
    again = AutoModelForCausalLM.from_pretrained(folder / "student")
    tokens = AutoTokenizer.from_pretrained(folder / "student")
    assert tokens("Anne")["input_ids"] == list(b"Anne")
    assert sum(p.numel() for p in again.parameters()) > 0


def test_a_student_cut_from_its_teacher_comes_nearer_to_it(tmp_path, roles):
    finished = run_recipe(recipe(roles=roles), out=tmp_path / "kd")
    results, history = finished.results, (tmp_path / "kd" / "metrics.jsonl").read_text().splitlines()
    first, last = (json.loads(line) for line in (history[0], history[-1]))
    assert last["terms"]["kd"] < first["terms"]["kd"]
    assert results["size"]["parameters"] < results["size"]["teacher"]["parameters"]
    assert results["token_agreement"]["top1"] > 0.5
    sample = results["writing"]["samples"][0]
    assert set(sample) == {"prompt", "truth", "student", "teacher"}
    again = evaluate_run(tmp_path / "kd", ["token_loss"])
    assert again.results["token_loss"] == results["token_loss"]
    assert "the same greedy continuations" in export_run(tmp_path / "kd")
    assert (tmp_path / "kd" / "exported" / "model.safetensors").exists()


@pytest.mark.parametrize("codec", ["fp32", "hidden"])
def test_a_cached_run_equals_the_live_one_to_the_rounding_of_its_codec(tmp_path, roles, codec):
    plain = recipe(roles=roles)
    live = run_recipe(plain, out=tmp_path / "live").results
    said = cache_recipe(plain, out=tmp_path / "cache", codec=codec)
    assert "bytes a token" in said
    cached = {**roles, "teacher": {"cache": str(tmp_path / "cache")}, "reference": roles["teacher"]}
    cached["student"] = {"from": "reference", "layers": 2}
    found = run_recipe(recipe(roles=cached), out=tmp_path / "cached").results
    assert found["token_loss"]["loss"] == pytest.approx(live["token_loss"]["loss"], abs=2e-3)
    assert found["token_agreement"]["kl_teacher_student"] == pytest.approx(
        live["token_agreement"]["kl_teacher_student"], abs=2e-3
    )


def test_check_tells_what_a_run_on_text_would_be(roles):
    found = check_recipe(recipe(roles=roles))
    (rows,) = found.tables.values()
    about = dict(rows)
    assert about["tokens"] == "1,536 to predict an epoch, 32 sequences"
    assert about["batch"] == "(8, 48), 100% of it tokens"
    assert about["role student"].endswith("trains")
    assert "8 of" in about["steps"]


def test_a_cache_of_other_text_is_refused_before_training(tmp_path, roles):
    cache_recipe(recipe(roles=roles), out=tmp_path / "cache", codec="topk", k=4)
    other = recipe(roles={**roles, "teacher": {"cache": str(tmp_path / "cache")}})
    other["roles"]["student"] = {"model": SHAPE}
    other["data"] = {**other["data"], "limit": {"train": 40, "test": 4}}
    with pytest.raises(CacheError, match="lacks 8 of the 40"):
        run_recipe(other, out=tmp_path / "run")


def test_a_student_learns_from_a_server(tmp_path, roles):
    model = tiny(2, layers=1, context=128)
    with TeacherServer(Scorer(model, tokenizer()), "tiny") as server:
        remote = {"url": server.url, "model": "tiny", "journal": str(tmp_path / "journal"), "top": 30}
        taught = {"teacher": {"remote": remote}, "student": {"model": SHAPE}}
        method = {"name": "word_kd", "kd_ratio": 1.0}
        finished = run_recipe(recipe(roles=taught, method=method), out=tmp_path / "run")
    history = [
        json.loads(line)["terms"]["kd"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert history[1] < history[0]
    assert "note" in finished.results["token_agreement"]


def test_arms_share_caches_and_end_in_a_page_with_what_everybody_writes(tmp_path, roles, capsys):
    data = {
        "about": "tiny",
        "seeds": [0, 1],
        "caches": {"drawn": {"codec": "sampled", "draws": 20, "independent": True}},
        "shared": recipe(roles=roles),
        "arms": {
            "sft": {"method": "sft"},
            "kd": {},
            "cached": {"roles": {"teacher": {"cache": "$cache/drawn"}, "student": {"model": SHAPE}}},
        },
    }
    overrides = ["shared.train.epochs=1"]
    finished = run_arms(data, overrides, name="tiny", out=tmp_path / "all")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "all").rglob("results.json")}
    assert len(times) == 6
    header = json.loads((tmp_path / "all" / "caches" / "drawn" / "cache.json").read_text())
    assert header["codec"] == {"name": "sampled", "draws": 20, "independent": True, "seed": 0, "temperature": 1.0}
    again = run_arms(data, overrides, name="tiny", out=tmp_path / "all")
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert again.seconds == finished.seconds
    show_arms(finished)
    said = capsys.readouterr().out
    assert "kd: held-out loss" in said
    assert "seeds' spread" in said
    page = report_arms(finished).read_text()
    assert "writes on, greedily" in page
    assert "KL to teacher" in page
    wrong = {**data, "arms": {"kd": {"roles": {"teacher": {"cache": "$cache/none"}}}}}
    with pytest.raises(RecipeError, match="names no cache"):
        run_arms(wrong, name="tiny", out=tmp_path / "wrong")


def test_check_goes_through_the_arms_before_their_caches_are_there(tmp_path, roles, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cached = {"roles": {"teacher": {"cache": "$cache/drawn"}, "student": {"model": SHAPE}}}
    data = {
        "caches": {"drawn": {"codec": "sampled"}},
        "shared": recipe(roles=roles),
        "arms": {"kd": {}, "cached": cached},
    }
    Path("tiny.yaml").write_text(json.dumps(data))
    call(["check", "tiny.yaml"])
    said = capsys.readouterr().out
    assert said.index("arm kd") < said.index("arm cached")
    assert said.count("the recipe works") == 2
    with pytest.raises(SystemExit):
        main(["check", "lm/teacher_hacking"])
    assert "limbeck run runs it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"roles": {"student": {"from": "techer"}}}, "names no role and no model"),
        ({"roles": {"teacher": {"model": SHAPE}, "student": {"from": "teacher", "layers": 9}}}, "cannot keep 9"),
        ({"roles": {"student": {"model": {"name": "llama", "width": 30, "heads": 4}}}}, "divided over 4 heads"),
        ({"roles": {"student": {"model": SHAPE, "layers": 2}}}, "belong to a copy"),
        ({"data": {"name": "persuasion", "options": {"tokenizer": "bytes", "context": 0}}}, "context"),
        ({"data": {"name": "persuasio", "options": {"tokenizer": "bytes"}}}, "persuasion"),
        ({"data": {"name": "persuasion", "augment": ["flip"], "options": {"tokenizer": "bytes"}}}, "for images"),
        ({"data": {"name": "persuasion"}}, "tokenizer"),
    ],
)
def test_mistakes_are_named_with_the_fix(tmp_path, change, said):
    plain = recipe(method={"name": "sft"}, **{k: v for k, v in change.items() if k != "roles"})
    with pytest.raises(RecipeError, match=said):
        run_recipe({**plain, **change}, out=tmp_path)


def test_the_quickstart_is_a_comparison_whose_arms_are_recipes():
    data = read_mapping("recipes/lm/quickstart.yaml")
    assert data == read_mapping("lm/quickstart")
    for arm in data["arms"].values():
        loaded = load_recipe(laid_over(data["shared"], arm))
        assert loaded.stages[0].task == "causal-lm"
    assert yaml.safe_dump(data)
    assert set(arms_to_check(data, name="quickstart")) == set(data["arms"])


def test_weights_of_a_copy_are_loaded_into_it(tmp_path, roles):
    student = tiny(0, layers=2)
    save_weights(student, tmp_path / "w.safetensors")
    with_weights = {**roles, "student": {"from": "teacher", "layers": 2, "weights": str(tmp_path / "w.safetensors")}}
    run_recipe(recipe(roles=with_weights, train={"epochs": 1, "batch_size": 32, "lr": 1e-9}), out=tmp_path / "run")
    left = load_file(tmp_path / "run" / "student.safetensors")
    torch.testing.assert_close(left["model.norm.weight"], student.state_dict()["model.norm.weight"])


def small(name):
    """A shipped recipe with tiny models of bytes and short texts; nothing else changes."""
    data = as_plain(load_recipe(name))
    for stage in data["stages"]:
        stage["data"]["limit"] = {"train": 48, "test": 4}
        # Privileged prompts must fit as well.
        asked = any(isinstance(entry, dict) and "template" in entry for entry in stage.get("transforms", ()))
        stage["data"]["options"] |= {"tokenizer": "bytes", "context": 48 if asked else 24}
        stage["train"] |= {"precision": "fp32"}
        for options in (stage["data"]["options"], *stage.get("transforms", ())):
            if isinstance(options, dict) and "max_new_tokens" in options:
                options |= {"max_new_tokens": 8, **({"prompt_tokens": 8} if "prompt_tokens" in options else {})}
        for role, spec in stage["roles"].items():
            if "model" in spec:
                stage["roles"][role] = {"model": SHAPE}
            elif "from" in spec:
                stage["roles"][role] = {"from": spec["from"], "layers": 2}
    return load_recipe(data)


@pytest.mark.parametrize("name", [n for n in shipped() if n.startswith("lm_")])
def test_a_shipped_recipe_trains(name):
    loaded = small(name)
    for spec in loaded.stages:
        stage = build_stage(loaded, spec, earlier=lambda name, model: None).stage
        before = {key: value.clone() for key, value in stage.learners["student"].state_dict().items()}
        stage.step = 1
        stage.rehearse(stage.first_batch())
        after = stage.learners["student"].state_dict()
        assert any(not torch.equal(before[key], value) for key, value in after.items())


@pytest.mark.parametrize(
    ("key", "value"), [("augment", ["flip"]), ("imbalance", 10), ("label_noise", 0.1), ("labelled", 4)]
)
def test_what_only_images_and_classes_have_is_refused(key, value, tmp_path):
    data = {"name": "persuasion", "options": {"tokenizer": "bytes", "context": 32}, key: value}
    roles = {"student": {"model": {"name": "llama", "layers": 1, "width": 16, "heads": 2}}}
    with pytest.raises(RecipeError, match=rf"data\.{key} is for (images|classes)"):
        run_recipe({"task": "causal-lm", "data": data, "roles": roles, "method": "sft"}, out=tmp_path / "run")
