"""Documents, domains and tokens that are chosen by what models say of them, through one interface."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from language.corpus import sequences, tiny, tokenizer
from language.spoken import loss_of, ragged, said, spoken, tokens
from limbeck.data.text import TextLoader, TextSource
from limbeck.data.text.domain_mix import DomainLoader
from limbeck.data.text.refined import RefinedLoader
from limbeck.engine.interruption import Interrupted
from limbeck.engine.reporter import Reporter
from limbeck.errors import DataError, NeedsError, RecipeError
from limbeck.functional.difference_sampling import gumbel_scores
from limbeck.functional.domain_weights import domain_weights, largest_remainder
from limbeck.methods.base import build_method
from limbeck.recipes.load import load_recipe
from limbeck.recipes.run import run_recipe
from limbeck.selection import PoolSignals, build_selector, selectors
from limbeck.selection.documents import DifferenceSampling
from limbeck.selection.domains import DomainDiscrepancy
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.live import FrozenTeacher

TASK = CausalLM(vocabulary=257)
SHAPE = {"name": "llama", "layers": 2, "width": 32, "heads": 4}


def documents(teacher: list[float], reference: list[float], **more: Any) -> PoolSignals:
    losses = {"teacher": torch.tensor(teacher).double(), "reference": torch.tensor(reference).double()}
    return PoolSignals(index=torch.arange(len(teacher)), loss=losses, **more)


def kept(pool: PoolSignals, **options: Any) -> list[int]:
    return DifferenceSampling(**options)(pool).chosen.nonzero().squeeze(1).tolist()


class TestDocuments:
    def test_the_largest_differences_are_kept_in_the_order_of_the_corpus(self) -> None:
        pool = documents([1.0, 2.0, 3.0, 1.0], [1.1, 4.0, 3.0, 2.0])
        assert kept(pool) == [1, 3]
        assert kept(pool, ratio=0.26) == [1]
        assert kept(pool, ratio=1.0) == [0, 1, 2, 3]

    def test_what_both_models_find_equally_hard_does_not_matter(self) -> None:
        pool = documents([1.0, 2.0, 3.0, 1.0], [1.1, 4.0, 3.0, 2.0])
        noise = torch.tensor([5.0, 0.0, 9.0, 0.3]).double()
        moved = PoolSignals(index=pool.index, loss={role: x + noise for role, x in pool.loss.items()})
        assert kept(moved) == kept(pool)

    def test_of_equal_scores_the_first_are_kept(self) -> None:
        assert kept(documents([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])) == [0, 1]

    def test_sums_prefer_long_documents_and_rank_the_same_where_all_are_of_one_length(self) -> None:
        pool = documents([1.0, 1.0, 1.0], [1.5, 1.4, 1.0], tokens=torch.tensor([10, 100, 10]))
        assert kept(pool, ratio=0.34) == [0]
        assert kept(pool, ratio=0.34, normalized=False) == [1]
        even = documents([1.0, 1.0, 1.0], [1.5, 1.4, 1.0], tokens=torch.tensor([7, 7, 7]))
        assert kept(even, ratio=0.34, normalized=False) == kept(even, ratio=0.34)

    def test_draws_are_in_proportion_to_the_exponentials_of_scores(self) -> None:
        scores = torch.tensor([0.0, 0.1, 0.2, 0.4]).double()
        uniform = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0)).double()
        first = gumbel_scores(scores, uniform, temperature=0.2).argmax(-1)
        shares = torch.bincount(first, minlength=4) / len(first)
        torch.testing.assert_close(shares.double(), (scores / 0.2).softmax(-1), atol=0.01, rtol=0)

    def test_a_draw_depends_on_the_seed_and_turns_into_the_top_as_it_cools(self) -> None:
        generator = torch.Generator().manual_seed(1)
        teacher, reference = torch.rand(2, 40, generator=generator).tolist()
        drawn = [kept(documents(teacher, reference, seed=s), draw="gumbel", temperature=0.5) for s in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert len(drawn[0]) == 20
        cold = kept(documents(teacher, reference), draw="gumbel", temperature=1e-6)
        assert cold == kept(documents(teacher, reference))

    def test_a_part_may_be_plain_text(self) -> None:
        teacher, reference = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)).tolist()
        top, mixed = (set(kept(documents(teacher, reference, seed=3), plain=p)) for p in (0.0, 0.5))
        best = set(kept(documents(teacher, reference), ratio=0.25))
        assert len(mixed) == 20
        assert best <= mixed
        assert mixed != top


def corpus(count: int = 12, *, domains: Mapping[str, int] | None = None, seed: int = 0) -> TextSource:
    rows = sequences(count, seed=seed)
    return TextSource("corpus", rows, tokenizer(), context=32, domains=domains)


class Counted:
    """A frozen model that knows how often it was asked, and may break down."""

    def __init__(self, seed: int, *, breaks_after: int | None = None) -> None:
        self.observer = FrozenTeacher("teacher", tiny(seed), TASK, wanted=frozenset({"hidden|logits"}))
        self.model, self.asked, self.breaks_after = self.observer.model, 0, breaks_after

    def fingerprint(self) -> str:
        return self.observer.fingerprint()

    def __call__(self, batch: Any) -> Any:
        self.asked += 1
        if self.breaks_after is not None and self.asked > self.breaks_after:
            raise KeyboardInterrupt
        return self.observer(batch)


def mean_losses(model: torch.nn.Module, source: TextSource) -> list[float]:
    found = []
    for row in range(len(source)):
        batch = TextLoader(source, batch_size=1, shuffle=False).batch(np.array([row]), 0)
        logits = TASK.run(model, batch["inputs"], frozenset({"logits"})).logits.double()
        nll = -logits.log_softmax(-1).gather(-1, batch["labels"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
        found.append(float(nll[batch["mask"]].mean().detach()))
    return found


class TestRefinedCorpus:
    def refined(self, folder: Path | None = None, source: TextSource | None = None, **broken: int) -> RefinedLoader:
        scorers = {"teacher": Counted(2, breaks_after=broken.get("teacher")), "reference": Counted(3)}
        loader = TextLoader(source or corpus(), batch_size=3, seed=1)
        return RefinedLoader(loader, DifferenceSampling(ratio=0.5), scorers, seed=1, folder=folder)

    def test_it_trains_on_the_rows_that_the_models_differ_on_most(self) -> None:
        source = corpus()
        loader = self.refined()
        assert loader.steps_per_epoch == 2
        loader.start(lambda: None, {})
        expected = kept(documents(mean_losses(tiny(2), source), mean_losses(tiny(3), source)))
        assert loader.chosen.tolist() == expected
        shown = [batch["index"].tolist() for batch in loader.epoch(0)]
        assert sorted(n for part in shown for n in part) == expected
        assert [b["index"].tolist() for b in loader.epoch(0, 1)] == shown[1:]
        assert [b["index"].tolist() for b in loader.epoch(1)] != shown

    def test_no_model_is_asked_once_the_rows_are_chosen(self) -> None:
        loader = self.refined()
        teacher = loader._scorers["teacher"]
        loader.start(lambda: None, {})
        asked = teacher.asked  # type: ignore[attr-defined]
        for epoch in range(3):
            list(loader.epoch(epoch))
        assert teacher.asked == asked > 0  # type: ignore[attr-defined]
        again = self.refined()
        other = again._scorers["teacher"]
        again.load_state_dict(loader.state_dict())
        again.start(lambda: None, {})
        assert other.asked == 0  # type: ignore[attr-defined]
        assert [b["index"].tolist() for b in again.epoch(2)] == [b["index"].tolist() for b in loader.epoch(2)]

    def test_an_interrupted_scoring_goes_on_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("limbeck.data.text.document_losses._ROWS_A_FILE", 3)
        whole = self.refined()
        whole.start(lambda: None, {})
        with pytest.raises(KeyboardInterrupt):
            self.refined(tmp_path, teacher=2).start(lambda: None, {})
        files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
        assert len(files) == 2
        last = self.refined(tmp_path)
        teacher = last._scorers["teacher"]
        last.start(lambda: None, {})
        assert teacher.asked == 2  # type: ignore[attr-defined]
        assert last.chosen.tolist() == whole.chosen.tolist()
        assert all(p.stat().st_mtime_ns == time for p, time in files.items())
        third = self.refined(tmp_path)
        teacher = third._scorers["teacher"]
        third.start(lambda: None, {})
        assert teacher.asked == 0  # type: ignore[attr-defined]
        other = self.refined(tmp_path, source=corpus(seed=9))
        teacher = other._scorers["teacher"]
        other.start(lambda: None, {})
        assert teacher.asked == 4  # type: ignore[attr-defined]

    def test_damaged_losses_and_an_empty_choice_are_named(self, tmp_path: Path) -> None:
        self.refined(tmp_path).start(lambda: None, {})
        next(iter(tmp_path.glob("*.json"))).write_text("[1, ")
        with pytest.raises(DataError, match="remove it, and it is worked out again"):
            self.refined(tmp_path).start(lambda: None, {})
        loader = TextLoader(corpus(), batch_size=3)
        with pytest.raises(DataError, match="raise `ratio`"):
            RefinedLoader(loader, DifferenceSampling(ratio=0.01), {}, seed=0)


class TestWeights:
    @settings(deadline=None, max_examples=40)
    @given(
        st.lists(st.floats(0.1, 900.0), min_size=1, max_size=6),
        st.floats(0.0, 1.0),
        st.integers(1, 5),
    )
    def test_they_add_up_and_keep_their_floor(self, ratios: list[float], smoothing: float, rounds: int) -> None:
        found = None
        rho = torch.tensor(ratios).double()
        for _ in range(rounds + 1):
            found = domain_weights(rho, found, smoothing=smoothing)
            assert found.sum() == pytest.approx(1.0)
            assert found.isfinite().all()
        assert found is not None
        assert (found >= (1 - smoothing) / len(ratios) - 1e-12).all()
        order = rho.argsort()
        assert (found[order].diff() >= -1e-12).all()

    def test_limits(self) -> None:
        one = torch.ones(4).double()
        before = torch.tensor([0.7, 0.1, 0.1, 0.1]).double()
        torch.testing.assert_close(domain_weights(one, before, smoothing=0.5), 0.5 * before + 0.125)
        torch.testing.assert_close(domain_weights(3 * one + before, before, smoothing=0.0), 0.25 * one)
        assert domain_weights(torch.ones(1)).tolist() == [1.0]
        ahead = domain_weights(torch.tensor([0.5, 1.0]), smoothing=0.9)
        assert 0 < ahead[0] < ahead[1]

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.integers(0, 30), min_size=1, max_size=7).filter(any), st.integers(0, 500))
    def test_whole_parts_add_up_and_are_within_one(self, sizes: list[int], total: int) -> None:
        shares = torch.tensor(sizes).double() / sum(sizes)
        parts = largest_remainder(shares, total)
        assert int(parts.sum()) == total
        assert ((parts - shares * total).abs() < 1).all()


class Gathering:
    """What several processes give each other, between threads."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier, self.box = world, threading.Barrier(world), [None] * world

    def of(self, rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            self.box[rank] = value
            self.barrier.wait()
            found = list(self.box)
            self.barrier.wait()
            return found

        return gather


DOMAINS = {"first": 6, "second": 10, "third": 4}


def prepared(
    *, every: int = 3, rank: int = 0, world: int = 1, gather: Any = None, draw: str = "chance", **options: Any
) -> DomainLoader:
    source = corpus(20, domains=DOMAINS)
    held = corpus(6, domains={"first": 2, "second": 2, "third": 2}, seed=5)
    loader = TextLoader(source, batch_size=4, seed=1, rank=rank, world_size=world)
    selector = DomainDiscrepancy(every=every, draw=draw, **options)
    given = {} if gather is None else {"gather": gather}
    return DomainLoader(loader, TextLoader(held, batch_size=4, shuffle=False), selector, TASK, seed=1, **given)


def mixing(**options: Any) -> tuple[DomainLoader, Counted]:
    made, teacher = prepared(**options), Counted(2)
    made.start(lambda: tiny(1), {"teacher": teacher})
    return made, teacher


def shown(loader: DomainLoader, epoch: int, start: int = 0) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader.epoch(epoch, start)]


class TestMixtureOfDomains:
    def test_the_first_interval_is_that_of_the_data_and_later_ones_follow_the_weights(self) -> None:
        loader, _ = mixing(every=50, draw="shares", smoothing=0.9)
        for epoch in range(20):
            shown(loader, epoch)
        counted = [[entry["rows"][name] for name in DOMAINS] for entry in loader.history]
        assert counted[0] == [60, 100, 40]
        weights = [torch.tensor([entry["weight"][name] for name in DOMAINS]) for entry in loader.history]
        assert counted[1] == largest_remainder(weights[1], 200).tolist()
        ratios = torch.tensor([loader.history[1]["perplexity_ratio"][name] for name in DOMAINS])
        torch.testing.assert_close(weights[1], domain_weights(ratios, weights[0], smoothing=0.9))

    def test_losses_are_those_of_the_held_out_text(self) -> None:
        loader, _ = mixing()
        shown(loader, 0)
        held = corpus(6, domains={"first": 2, "second": 2, "third": 2}, seed=5)
        means = np.array(mean_losses(tiny(1), held))
        counts = np.array([s.targets for s in held.sequences])
        for n, name in enumerate(DOMAINS):
            part = slice(2 * n, 2 * n + 2)
            exact = (means[part] * counts[part]).sum() / counts[part].sum()
            assert loader.history[0]["student_loss"][name] == pytest.approx(exact, rel=1e-4)

    def test_every_row_of_a_domain_comes_before_any_comes_again(self) -> None:
        loader, _ = mixing(every=4)
        seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
        for epoch in range(6):
            for batch in loader.epoch(epoch):
                for index, domain in zip(batch["index"].tolist(), batch["domain"].tolist()):
                    seen[domain].append(index)
        for domain, size in enumerate(DOMAINS.values()):
            for start in range(0, len(seen[domain]) - size + 1, size):
                assert len(set(seen[domain][start : start + size])) == size
            counts = Counter(seen[domain])
            assert max(counts.values()) - min(counts.values()) <= 1

    def test_the_teacher_is_asked_once_and_a_restart_shows_the_same_rows(self) -> None:
        loader, teacher = mixing()
        whole = [shown(loader, epoch) for epoch in range(3)]
        assert teacher.asked == 2
        half, _ = mixing()
        assert shown(half, 0) == whole[0]
        batches = half.epoch(1)
        assert [next(batches)["index"].tolist() for _ in range(2)] == whole[1][:2]
        state = half.state_dict()
        again, other = mixing()
        asked = other.asked
        again.load_state_dict(state)
        again.start(lambda: tiny(1), {"teacher": other})
        assert other.asked == asked
        assert shown(again, 1, 2) == whole[1][2:]
        assert shown(again, 2) == whole[2]
        assert again.history == loader.history

    def test_a_pass_over_the_data_in_between_does_not_move_the_mixture(self) -> None:
        loader, _ = mixing()
        for epoch in range(2):
            shown(loader, epoch)
        state = loader.state_dict()
        assert sorted(n for part in shown(loader, 0) for n in part) == list(range(20))
        assert loader.state_dict()["interval"] == state["interval"]

    def test_two_processes_share_the_batches_of_one(self) -> None:
        alone, _ = mixing()
        whole = [shown(alone, epoch) for epoch in range(2)]
        gathering = Gathering(2)
        # Models are made here, since threads share the state of the random numbers that make weights.
        parts = [(prepared(rank=r, world=2, gather=gathering.of(r)), tiny(1), Counted(2)) for r in (0, 1)]
        found: dict[int, Any] = {}

        def work(rank: int) -> None:
            made, student, teacher = parts[rank]
            made.start(lambda: student, {"teacher": teacher})
            found[rank] = ([shown(made, epoch) for epoch in range(2)], made.history)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        joined = [[a + b for a, b in zip(*sides)] for sides in zip(found[0][0], found[1][0])]
        assert joined == whole
        assert found[0][1] == found[1][1] == alone.history

    def test_what_is_missing_is_named(self) -> None:
        plain = TextLoader(corpus(), batch_size=4)
        with pytest.raises(NeedsError, match="the text has none"):
            DomainLoader(plain, plain, DomainDiscrepancy(), TASK, seed=0)
        held = TextLoader(corpus(2, domains={"first": 1, "second": 1, "third": 0}), batch_size=4)
        with pytest.raises(DataError, match="'third' has no row that is held out"):
            DomainLoader(TextLoader(corpus(20, domains=DOMAINS), batch_size=4), held, DomainDiscrepancy(), TASK, seed=0)
        loader, _ = mixing()
        with pytest.raises(NeedsError, match="a live model"):
            loader.start(lambda: tiny(1), {"teacher": lambda batch: None})


class TestTokens:
    @pytest.mark.parametrize("name", [e.name for e in selectors.entries() if e.part.unit == "tokens"])
    def test_what_is_masked_is_never_chosen_and_moves_nothing(self, name: str) -> None:
        select = build_selector(name, "tokens")
        mask = ragged()
        entropy = {role: said(n).abs().sum(-1) for n, role in enumerate(("student", "teacher"))}
        choice = select(PoolSignals(entropy=entropy, mask=mask))
        assert not choice.chosen[~mask].any()
        assert choice.chosen[mask].any()
        noisy = {role: torch.where(mask, x, 99.0 * torch.rand_like(x)) for role, x in entropy.items()}
        assert torch.equal(select(PoolSignals(entropy=noisy, mask=mask)).share, choice.share)
        shuffled = torch.tensor([2, 0, 1])
        moved = PoolSignals(entropy={r: x[shuffled] for r, x in entropy.items()}, mask=mask[shuffled])
        torch.testing.assert_close(select(moved).share, choice.share[shuffled])

    def test_the_weight_grows_with_how_much_surer_the_teacher_is(self) -> None:
        select = build_selector({"name": "surer_teacher", "temperature": 0.5}, "tokens")
        gap = torch.linspace(-3, 3, 9)
        share = select(PoolSignals(entropy={"student": gap + 4, "teacher": torch.full((9,), 4.0)})).share
        assert (share.diff() > 0).all()
        assert share[4] == pytest.approx(0.5)
        torch.testing.assert_close(share + share.flip(0), torch.ones(9))

    def test_word_level_kd_with_surer_teachers_is_the_direct_term_of_tsd_kd(self) -> None:
        roles = {"student": spoken(said(0)), "teacher": spoken(said(1))}
        for average in ("token_mean", "sequence_mean"):
            jsd = {"name": "jsd", "beta": 0.9}
            method = build_method("word_kd", divergence=jsd, tokens="surer_teacher", average=average)
            whole = build_method("tsd_kd", average=average)
            torch.testing.assert_close(
                loss_of(method, tokens(), "kd", **roles), loss_of(whole, tokens(), "jsd", **roles)
            )

    def test_all_tokens_are_the_plain_method_and_fewer_are_their_mean(self) -> None:
        roles = {"student": spoken(said(0)), "teacher": spoken(said(1))}
        plain = build_method("word_kd")(tokens(), **roles)["kd"].values
        for average in ("token_mean", "sequence_mean"):
            every = build_method("word_kd", tokens={"name": "opening", "fraction": 1.0}, average=average)
            known = build_method("word_kd", average=average)
            torch.testing.assert_close(loss_of(every, tokens(), "kd", **roles), loss_of(known, tokens(), "kd", **roles))
        few = build_method("word_kd", tokens={"name": "uncertain_tokens", "fraction": 0.3})
        probabilities = said(0).softmax(-1)
        entropy = -(probabilities * probabilities.log()).sum(-1)
        means = [
            plain[row][mask][entropy[row][mask].argsort(descending=True)[: int(np.ceil(0.3 * int(mask.sum())))]]
            for row, mask in enumerate(ragged())
        ]
        torch.testing.assert_close(loss_of(few, tokens(), "kd", **roles), torch.cat(means).mean())

    def test_a_truncated_teacher_is_not_sure_of_anything(self) -> None:
        from limbeck.functional.sparse_targets import top_k
        from limbeck.signals import Signals, TopK

        found = top_k(said(1), 3)
        teacher = Signals(topk=TopK(found.logprobs, found.indices, found.tail, 13))
        with pytest.raises(NeedsError, match="whole distribution"):
            loss_of(build_method("word_kd", tokens="surer_teacher"), tokens(), student=spoken(said(0)), teacher=teacher)


def test_a_selector_for_something_else_is_refused_with_those_that_fit() -> None:
    with pytest.raises(RecipeError, match=r"chooses tokens; here documents are chosen.*difference_sampling"):
        build_selector("opening", "documents")
    with pytest.raises(RecipeError, match=r"as many as it is told to.*confident"):
        build_selector("random", counted=False)
    with pytest.raises(NeedsError, match="the loss of the role 'reference'"):
        DifferenceSampling()(PoolSignals(loss={"teacher": torch.zeros(2)}))
    with pytest.raises(RecipeError, match="ratio"):
        build_selector({"name": "difference_sampling", "ratio": 2.0}, "documents")


def texts(folder: Path) -> dict[str, str]:
    """Three files of different kinds of text."""
    numbers = random.Random(0)
    kinds = {"words": "the cat sat on a mat and saw the dog ", "sums": "0123456789+-= ", "noise": "xqzjkvwp#@!~"}
    for name, alphabet in kinds.items():
        units = alphabet.split() if name == "words" else list(alphabet)
        joint = " " if name == "words" else ""
        (folder / f"{name}.txt").write_text(joint.join(numbers.choice(units) for _ in range(1500)))
    return {name: {"name": "text", "path": str(folder / f"{name}.txt")} for name in kinds}


def recipe(folder: Path, **sections: Any) -> dict[str, Any]:
    return {
        "task": "causal-lm",
        "data": {
            "name": "domains",
            "limit": {"train": 24, "holdout": 6, "test": 6},
            "holdout": 0.2,
            "options": {"tokenizer": "bytes", "context": 24, "domains": texts(folder)},
        },
        "roles": {"teacher": {"model": SHAPE}, "student": {"model": SHAPE}},
        "train": {"epochs": 2, "batch_size": 4, "optimizer": "adamw", "lr": 0.003, "checkpoint_every": 1},
        "evaluate": ["token_loss"],
        **sections,
    }


DDK = {"method": "ddk", "selection": {"name": "domain_discrepancy", "every": 3}}


def miniplm(folder: Path) -> dict[str, Any]:
    stages = [
        {"name": "reference", "data": {"train_on": "holdout"}, "method": "sft",
         "roles": {"student": {"from": "teacher", "layers": 1}}},
        {"name": "train", "data": {"train_on": "rest"}, "method": "miniplm",
         "roles": {"student": {"model": SHAPE}, "reference": {"from_stage": "reference"}}},
    ]  # fmt: skip
    plain = recipe(folder, stages=stages)
    plain["roles"] = {"teacher": {"model": SHAPE}}
    return plain


class StopAt(Reporter):
    """Stands for a kill in the middle of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.wanted, self.stage = (stage, step), ""

    def stage_started(self, name: str, progress: Any) -> None:
        self.stage = name

    def step_done(self, progress: Any, loss: float) -> None:
        if (self.stage, progress.step) == self.wanted:
            raise Interrupted("killed")


@pytest.mark.parametrize("method", ["ddk", "miniplm"])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    plain = recipe(tmp_path, **DDK) if method == "ddk" else miniplm(tmp_path)
    whole = run_recipe(load_recipe(plain), out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_recipe(load_recipe(plain), out=tmp_path / "killed", reporter=StopAt("train", 4))
    finished = run_recipe(load_recipe(plain), out=tmp_path / "killed")
    assert finished.results["token_loss"] == whole.results["token_loss"]
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    if method == "ddk":
        told = [json.loads((tmp_path / name / "domains_train.json").read_text()) for name in ("whole", "killed")]
        assert told[0] == told[1]
        assert [entry["step"] for entry in told[0]] == [0, 3, 6, 9]
        assert all(sum(entry["weight"].values()) == pytest.approx(1) for entry in told[0])
    else:
        assert len(list((tmp_path / "whole" / "document_losses").glob("*.json"))) == 2


def test_held_out_text_is_nothing_that_is_trained_or_tested_on(tmp_path: Path) -> None:
    from limbeck.data.text import load_text

    spec = {"name": "domains", "domains": texts(tmp_path)}
    parts = {
        split: load_text(spec, tokenizer(), split=split, context=24, holdout=0.2, validation=0.1)  # type: ignore[arg-type]
        for split in ("train", "test", "validation", "holdout")
    }
    keys = [key for part in parts.values() for key in part.sequence_keys.tolist()]
    assert len(set(keys)) == len(keys)
    for part in parts.values():
        assert part.domain_names == ("words", "sums", "noise")
        assert part.domains is not None
        assert set(part.domains.tolist()) == {0, 1, 2}
    packed = load_text(spec, tokenizer(), context=60, packed=True, limit=30)
    assert packed.domains is not None
    for row, domain in zip(packed.rows, packed.domains):
        assert len({n * 3 // 30 for n in row} | {int(domain)}) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({**DDK, "data": {"holdout": 0.0}}, "text that is held out"),
        ({"method": "miniplm"}, "no role is 'reference'"),
        ({"method": "sft", "selection": "opening"}, "rows or domains are chosen: difference_sampling"),
        ({"method": "sft", "selection": "confident"}, "chooses samples"),
        ({"method": "sft", "data": {"train_on": "holdout", "holdout": 0.0}}, "needs a part of the data"),
        ({"method": "sft", "data": {"limit": 2}}, "without a sequence"),
        (
            {"method": "sft", "data": {"options": {"tokenizer": "bytes", "domains": {"a": "persuasion"}}}},
            "at least two",
        ),
    ],
)
def test_mistakes_are_named_with_the_fix(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    plain = recipe(tmp_path)
    plain["data"] = {**plain["data"], **change.pop("data", {})}
    with pytest.raises((RecipeError, NeedsError), match=said):
        run_recipe({**plain, **change}, out=tmp_path / "run")
