from __future__ import annotations

import math

import openai
import pytest
import torch

from language.corpus import CHATML, tiny, tokenizer
from limbeck.errors import RecipeError
from limbeck.teachers.server import Scorer, TeacherServer

PROMPT = list(b"Anne was tenderness itself")


@pytest.fixture(scope="module")
def model():
    return tiny(5, context=128)


@pytest.fixture(scope="module")
def server(model):
    with TeacherServer(Scorer(model, tokenizer(CHATML), most=20), "tiny", key="secret") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="secret", max_retries=0) as made:
        yield made


def exact(model, ids, temperature=1.0):
    with torch.no_grad():
        return (model(torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_prompts_are_scored_at_the_temperature_of_the_request(model, client, temperature):
    """Row 32: log-probabilities are those of the distribution that was asked for."""
    found = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=0, echo=True, logprobs=5, temperature=temperature,
        extra_body={"return_tokens_as_token_ids": True},
    )  # fmt: skip
    logprobs, live = found.choices[0].logprobs, exact(model, PROMPT, temperature)
    assert logprobs.tokens == [f"token_id:{i}" for i in PROMPT]
    assert logprobs.token_logprobs[0] is None
    for place, token in enumerate(PROMPT[1:]):
        assert math.isclose(logprobs.token_logprobs[place + 1], live[place, token], abs_tol=1e-4)
        best = live[place].topk(5)
        top = {int(name.split(":")[1]): value for name, value in logprobs.top_logprobs[place + 1].items()}
        assert set(top) == set(best.indices.tolist())
        assert math.isclose(sum(map(math.exp, top.values())), best.values.exp().sum(), rel_tol=1e-4)
    assert found.usage.prompt_tokens == len(PROMPT)
    assert found.usage.completion_tokens == 0


def test_greedy_writing_is_that_of_the_model_with_its_log_probabilities(model, client):
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=1)
    with torch.no_grad():
        out = model.generate(torch.tensor([PROMPT]), max_new_tokens=6, do_sample=False, pad_token_id=0)
    new = out[0, len(PROMPT) :].tolist()
    assert found.choices[0].text == tokenizer().decode(new)
    live = exact(model, PROMPT + new)
    for place, value in enumerate(found.choices[0].logprobs.token_logprobs):
        assert math.isclose(value, live[len(PROMPT) - 1 + place].max(), abs_tol=1e-3)
    assert found.choices[0].finish_reason == "length"


def test_chat_is_rendered_by_the_template_and_seeds_repeat(client):
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "seed": 3}
    one = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2, n=2)
    two = client.chat.completions.create(**ask)
    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.usage.prompt_tokens == len(b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert len(one.choices) == 2
    for token in one.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 2
        assert token.logprob <= 0


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"prompt": []}, "empty"),
        ({"prompt": [1, 999]}, "outside 0..256"),
        ({"prompt": PROMPT, "max_tokens": 200}, "context of 128"),
        ({"prompt": PROMPT, "logprobs": 21}, "at most 20"),
        ({"prompt": PROMPT, "max_tokens": 0}, "nothing to answer"),
        ({"prompt": PROMPT, "temperature": -1}, "temperature"),
        ({"prompt": PROMPT, "model": "other"}, "no model 'other'"),
        ({"prompt": PROMPT, "extra_body": {"logit_bias": {"5": 2}}}, "logit_bias"),
    ],
)
def test_what_the_server_does_not_do_is_refused_in_words(client, request_, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.completions.create(**{"model": "tiny", **request_})


def test_a_wrong_key_and_a_wrong_path_are_refused(server, client):
    stranger = openai.OpenAI(base_url=server.url, api_key="guess", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="x")


def test_the_list_of_models_tells_what_a_client_must_know(client):
    about = client.models.list().data[0].model_dump()
    assert (about["id"], about["vocabulary"], about["max_logprobs"]) == ("tiny", 257, 20)
    assert about["tokenizer_fingerprint"] == tokenizer().fingerprint


def test_a_port_in_use_is_refused(server, model):
    port = int(server.url.split(":")[2].split("/")[0])
    with pytest.raises(RecipeError, match="another port"):
        TeacherServer(Scorer(model, tokenizer()), "again", port=port)
