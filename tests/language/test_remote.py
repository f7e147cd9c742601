from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from language.corpus import CHATML, loader, source, tiny, tokenizer
from limbeck import run_recipe
from limbeck.data.text import Chat, Pair, TextLoader
from limbeck.engine.reporter import Reporter
from limbeck.errors import CacheError, CostLimitError, RecipeError, RemoteError, UnreachableError
from limbeck.tasks.causal_lm import CausalLM
from limbeck.teachers.remote import Client, Endpoint, Journal, Prices, RemoteTeacher, complete_prompts, probe
from limbeck.teachers.remote.provider import remote_teacher
from limbeck.teachers.server import Scorer
from limbeck.teachers.server.protocol import Protocol


class Flaky:
    """limbeck's protocol behind a server that misbehaves as it is told, and counts what it charges."""

    def __init__(self):
        self.protocol = Protocol(Scorer(tiny(7, context=128), tokenizer(CHATML), most=50), "tiny")
        self.mishaps: list = []
        self.change = None
        self.charged: list[str] = []
        self.delay = 0.0
        flaky = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                flaky.answer(self, 200, json.dumps(flaky.protocol.models()))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(flaky.delay)
                if flaky.mishaps:
                    return flaky.answer(self, *flaky.mishaps.pop(0))
                flaky.charged.append(self.headers["Idempotency-Key"])
                kind = flaky.protocol.chat if "chat" in self.path else flaky.protocol.complete
                content = kind(body)
                return flaky.answer(self, 200, json.dumps(flaky.change(content) if flaky.change else content))

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @staticmethod
    def answer(handler, status, text, headers=()):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(text.encode())))
        handler.end_headers()
        handler.wfile.write(text.encode())


@pytest.fixture(scope="module")
def running():
    flaky = Flaky()
    yield flaky
    flaky.server.shutdown()
    flaky.server.server_close()


@pytest.fixture
def server(running):
    running.mishaps, running.change, running.charged, running.delay = [], None, [], 0.0
    return running


def client_of(server, folder, **options):
    prices = options.pop("prices", None)
    return Client(Endpoint(server.url, "tiny", **{"retries": 3, "wait": 0.01, **options}), folder, prices)


def teacher_of(server, folder, **options):
    top = options.pop("top", 20)
    return RemoteTeacher(client_of(server, folder, **options), tokenizer(CHATML), top=top, rows=2)


def exact(batch):
    logits = CausalLM(vocabulary=257).run(tiny(7, context=128), batch["inputs"], frozenset({"logits"})).logits
    return logits.log_softmax(-1)


@pytest.mark.parametrize("packed", [False, True])
def test_a_remote_teacher_says_what_a_live_one_says(server, tmp_path, packed):
    batch = next(loader(packed=packed).epoch(0))
    said = teacher_of(server, tmp_path)(batch)
    live, mask = exact(batch), batch["mask"]
    torch.testing.assert_close(said.topk.logprobs[mask], live.gather(-1, said.topk.indices)[mask], rtol=1e-3, atol=1e-3)
    total = said.topk.logprobs.exp().sum(-1) + said.topk.tail.exp()
    torch.testing.assert_close(total[mask], torch.ones(int(mask.sum())))
    own = live.gather(-1, batch["labels"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(said.logprobs[mask], own[mask], rtol=1e-3, atol=1e-3)
    assert (said.logprobs[~mask] == 0).all()
    assert said.topk.indices.shape[-1] == 20


def test_the_probe_tells_what_the_server_can_do(server, tmp_path):
    """Row 32."""
    found = probe(client_of(server, tmp_path / "a"), tokenizer(CHATML), top=5)
    assert (found.top, found.honours_temperature, found.by_id) == (5, True, True)
    server.change = lambda answer: server.protocol.complete(
        {"prompt": tokenizer().encode("The probe of a teacher: 12 words, é, 東京 and a line\nbreak."), "max_tokens": 0,
         "echo": True, "logprobs": 5}
    )  # fmt: skip
    raw = probe(client_of(server, tmp_path / "b"), tokenizer(CHATML), top=5)
    assert (raw.honours_temperature, raw.by_id) == (False, False)


def test_a_server_without_prompt_scores_or_with_another_tokenizer_is_refused_at_the_start(server, tmp_path):
    """Row 13: equal sizes are no equal tokenizers."""

    def without(answer):
        for choice in answer["choices"]:
            choice["logprobs"] = None
        return answer

    server.change = without
    with pytest.raises(RemoteError, match="does not score prompts"):
        probe(client_of(server, tmp_path / "a"), tokenizer(CHATML), top=5)
    other = tokenizer(CHATML)
    other.backend.add_special_tokens({"bos_token": other.backend.convert_ids_to_tokens(7)})
    with pytest.raises(RemoteError, match="another tokenizer"):
        probe(client_of(server, tmp_path / "b"), other, top=5)


@pytest.mark.parametrize(
    "mishap",
    [
        (429, json.dumps({"error": {"message": "slow down"}}), [("Retry-After", "0.05")]),
        (500, "oops"),
        (200, "not json"),
        (200, "[]"),
        (200, json.dumps({"choices": []})),
    ],
)
def test_what_may_pass_is_tried_again(server, tmp_path, mishap):
    batch = next(loader().epoch(0))
    right = teacher_of(server, tmp_path / "a")(batch).topk.logprobs
    server.mishaps = [mishap, mishap]
    assert torch.equal(teacher_of(server, tmp_path / "b")(batch).topk.logprobs, right)


def test_what_will_not_pass_is_told_at_once(server, tmp_path):
    server.mishaps = [(401, json.dumps({"error": {"message": "no such key"}}))]
    with pytest.raises(RemoteError, match="no such key"):
        teacher_of(server, tmp_path)(next(loader().epoch(0)))
    assert server.charged == []


def _fewer(answer):
    for choice in answer["choices"]:
        choice["logprobs"]["top_logprobs"] = [
            place and dict(list(place.items())[:2]) for place in choice["logprobs"]["top_logprobs"]
        ]
    return answer


def _nan(answer):
    answer["choices"][0]["logprobs"]["token_logprobs"][2] = math.nan
    return answer


def _short(answer):
    answer["choices"][0]["logprobs"]["token_logprobs"].pop()
    return answer


def _too_much(answer):
    top = answer["choices"][0]["logprobs"]["top_logprobs"][1]
    top.update(dict.fromkeys(top, 0.0))
    return answer


@pytest.mark.parametrize(
    ("change", "said"), [(_fewer, "fewer"), (_nan, "no log-probability"), (_short, "of"), (_too_much, "sum to")]
)
def test_answers_that_make_no_sense_are_not_kept(server, tmp_path, change, said):
    teacher = teacher_of(server, tmp_path, retries=1)
    teacher.start()
    server.change = change
    batch = next(loader().epoch(0))
    with pytest.raises(RemoteError, match=said):
        teacher(batch)
    server.change = None
    assert torch.isfinite(teacher(batch).topk.logprobs).all()


def test_nothing_is_paid_twice(server, tmp_path):
    rows = TextLoader(source(), batch_size=3, seed=1)
    first = teacher_of(server, tmp_path)
    said = [first(batch).topk.logprobs for batch in rows.epoch(0)]
    paid = len(server.charged)
    first.finish()
    again = teacher_of(server, tmp_path)
    assert all(torch.equal(again(batch).topk.logprobs, old) for batch, old in zip(rows.epoch(0), said))
    assert len(server.charged) == paid == len(set(server.charged))
    assert again.client.ledger.answers == paid
    assert again.client.ledger.prompt_tokens > 0


def test_a_text_is_paid_once_whatever_it_is_asked_together_with(server, tmp_path):
    rows = TextLoader(source(), batch_size=3, seed=1)
    teacher = teacher_of(server, tmp_path)
    for batch in rows.epoch(0):
        teacher(batch)
    paid, tokens = len(server.charged), teacher.client.ledger.prompt_tokens
    for again in (rows.epoch(1), TextLoader(source(), batch_size=4, seed=2).epoch(0)):
        for batch in again:
            said = teacher(batch).topk
            mask = batch["mask"]
            expected = exact(batch).gather(-1, said.indices)
            torch.testing.assert_close(said.logprobs[mask], expected[mask], rtol=1e-3, atol=1e-3)
    teacher.finish()
    teacher(next(rows.epoch(2)))
    assert (len(server.charged), teacher.client.ledger.prompt_tokens) == (paid, tokens)
    assert len(teacher.client.journal) == paid


def test_a_text_that_is_twice_in_a_batch_is_paid_once(server, tmp_path):
    batch = next(TextLoader(source(), batch_size=3, seed=5).epoch(0))
    once, twice = (teacher_of(server, tmp_path / name) for name in ("once", "twice"))
    said, doubled = once(batch).topk, twice(batch.map(lambda t: torch.cat([t, t]))).topk
    torch.testing.assert_close(doubled.logprobs, torch.cat([said.logprobs, said.logprobs]))
    assert once.client.ledger.prompt_tokens == twice.client.ledger.prompt_tokens


def test_the_answer_to_a_request_is_read_once_for_all_of_its_texts(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal:
        journal.keep("both", ["first", "second"], {}, ["a", "b"])
        read = []
        answer = journal._answer
        monkeypatch.setattr(journal, "_answer", lambda place: read.append(place) or answer(place))
        assert journal.find_all(["b", "none", "a", "both"]) == ["second", None, "first", ["first", "second"]]
        assert read == [0]


_CHILD = """
import sys
from limbeck.teachers.remote import Client, Endpoint
client = Client(Endpoint(sys.argv[1], "tiny", wait=0.01), sys.argv[2])
for number in range(8):
    body = {"prompt": [number + 1, 5, 6], "max_tokens": 0, "echo": True, "logprobs": 1}
    print(client.ask("completions", body, lambda a: a["choices"][0]["logprobs"]["token_logprobs"][1]), flush=True)
"""


def test_a_killed_process_loses_no_paid_answer(server, tmp_path):
    server.delay = 0.03
    command = [sys.executable, "-c", _CHILD, server.url, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    seen = [child.stdout.readline() for _ in range(3)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = len(server.charged)
    assert 3 <= before < 8
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.splitlines()
    assert [float(v) for v in out[:3]] == [float(v) for v in seen]
    # The request in flight at the kill comes again under its own key; no other one does.
    assert len(set(server.charged)) == 8
    assert len(server.charged) <= 9


def test_a_line_that_was_cut_off_is_forgotten_and_a_damaged_one_refused(tmp_path):
    with Journal(tmp_path) as journal:
        journal.keep("a", 1, {})
        journal.keep("b", 2, {})
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with Journal(tmp_path) as journal:
        assert (journal.find("a"), journal.find("b")) == (1, None)
        journal.keep("b", 3, {})
    with Journal(tmp_path) as journal:
        assert journal.find("b") == 3
        with pytest.raises(CacheError, match="another process"):
            Journal(tmp_path)
    path.write_bytes(whole[:12] + b"X" + whole[13:])
    with pytest.raises(CacheError, match="line 1"):
        Journal(tmp_path)


def test_processes_of_a_run_share_a_journal(tmp_path):
    with Journal(tmp_path) as held, Journal(tmp_path, shared=True) as beside:
        held.keep("a", [1, 2], {"prompt_tokens": 5}, ["a0", "a1"])
        assert "a1" in beside
        assert beside.find("a1") == 2
        beside.keep("b", 3, {"prompt_tokens": 7})
        held.keep("c", 4, {"prompt_tokens": 1})
        assert "b" in held
        assert (held.find("b"), held.find("c"), held.find("a")) == (3, 4, [1, 2])
        assert sum(u["prompt_tokens"] for u in held.usages()) == 13
        assert "c" in beside
        assert len(beside) == len(held) == 3
        assert [u["prompt_tokens"] for u in beside.usages(1)] == [7, 1]
    with Journal(tmp_path) as again:
        assert [again.find(key) for key in ("a0", "b", "c")] == [1, 3, 4]


def test_a_run_says_what_its_teacher_was_paid(server, tmp_path):
    told = []

    class Hears(Reporter):
        def note(self, message):
            told.append(message)

    remote = {"url": server.url, "model": "tiny", "journal": str(tmp_path / "paid"), "price": {"prompt": 1e6}}
    recipe = {
        "task": "causal-lm",
        "data": {
            "name": "persuasion",
            "limit": {"train": 6, "test": 2},
            "options": {"tokenizer": "bytes", "context": 16},
        },
        "roles": {"teacher": {"remote": remote}, "student": {"model": {"name": "llama", "layers": 1, "width": 16}}},
        "method": {"name": "word_kd", "kd_ratio": 1.0},
        "train": {"epochs": 2, "batch_size": 3, "lr": 0.01},
        "evaluate": ["token_loss"],
    }
    run_recipe(recipe, out=tmp_path / "run", reporter=Hears())
    (said,) = [message for message in told if server.url in message]
    assert f"has given {len(server.charged)} answers" in said
    # Every text of 17 tokens is paid in the first epoch alone, beside the two that probe the server.
    probed = 2 * len(tokenizer().encode("The probe of a teacher: 12 words, é, 東京 and a line\nbreak."))
    assert f": {6 * 17 + probed:,} tokens sent" in said


def test_the_limit_stops_before_the_next_request(server, tmp_path):
    client = client_of(server, tmp_path, prices=Prices(prompt=1e6, limit=5.0))

    def ask(first):
        body = {"prompt": [first, 2, 3], "max_tokens": 0, "echo": True, "logprobs": 1}
        return client.ask("completions", body, lambda answer: 1)

    ask(1)
    ask(2)
    with pytest.raises(CostLimitError, match="every answer is kept"):
        ask(3)
    assert ask(1) == 1
    assert str(client.ledger) == "2 answers: 6 tokens sent, 0 written, 6 in all"


def test_requests_keep_their_pace(server, tmp_path):
    client = client_of(server, tmp_path, requests_per_minute=1200)
    started = time.monotonic()
    for first in range(1, 6):
        client.ask("completions", {"prompt": [first], "max_tokens": 0, "echo": True, "logprobs": 0}, lambda a: 1)
    assert time.monotonic() - started > 0.19


def test_a_dead_server_is_an_error_that_says_how_to_go_on(tmp_path):
    client = Client(Endpoint("http://127.0.0.1:9", "tiny", retries=1, wait=0.01), tmp_path)
    with pytest.raises(RemoteError, match="goes on from there"):
        client.ask("completions", {"prompt": "x"}, lambda answer: 1)


@pytest.mark.parametrize("code", [None, 401, 503])
def test_a_server_that_cannot_be_asked_is_not_said_to_lack_scores(server, tmp_path, code):
    url = "http://127.0.0.1:9/v1" if code is None else server.url
    server.mishaps = [(code, "{}")] * 2
    with pytest.raises(UnreachableError) as refused:
        probe(Client(Endpoint(url, "tiny", retries=1, wait=0.01), tmp_path), tokenizer(CHATML), top=5)
    assert "score" not in str(refused.value)


def test_keys_come_from_the_environment_only(server, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="unknown key 'key'"):
        remote_teacher({"url": server.url, "model": "tiny", "key": "secret"}, loader())
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(RecipeError, match="NO_KEY"):
        client_of(server, tmp_path, key_variable="NO_KEY").ask("completions", {}, lambda answer: 1)


def test_completions_become_training_data_and_those_cut_off_do_not(server, tmp_path):
    examples = [Pair("one", "x"), Chat((("user", "two"), ("assistant", "x")))]

    def ended(answer):
        for choice in answer["choices"]:
            choice["finish_reason"] = "length" if "text" in choice else "stop"
        return answer

    server.change = ended
    client = client_of(server, tmp_path / "j")
    count = complete_prompts(client, examples, tmp_path / "out.jsonl", max_tokens=4, samples=2)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert count == len(lines) <= 2
    assert all([m["role"] for m in line["messages"]] == ["user", "assistant"] for line in lines)
    paid = len(server.charged)
    complete_prompts(client, examples, tmp_path / "again.jsonl", max_tokens=4, samples=2)
    assert len(server.charged) == paid
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
