"""The doctor finds mismatches that other tools were seen to pass over; rows are those of our list of bugs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from language.corpus import CHATML, sequences, tiny
from language.tokenizers_made import WORDS, byte_level, ours, saved, sentencepiece_bpe
from limbeck.cli import main
from limbeck.data.text import Encoded, TextSource
from limbeck.errors import RecipeError
from limbeck.recipes.build import build_stage
from limbeck.recipes.check import check_recipe
from limbeck.recipes.doctor import conversations, models, servers, text, tokens
from limbeck.recipes.load import load_recipe
from limbeck.students.language import add_lora
from limbeck.teachers.remote.probe import Probe

PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
SHAPE = {"name": "llama", "layers": 1, "width": 16, "heads": 2}


def severities(findings):
    return [f.severity for f in findings]


@pytest.fixture(scope="module")
def whole():
    return ours(byte_level(), "whole")


@pytest.fixture(scope="module")
def shuffled():
    """As many tokens as ``whole``, nearly all of them others: a different text taught it."""
    return ours(byte_level(text="the quick brown fox jumps over the lazy dog " * 9 + WORDS[::-1]), "shuffled")


def test_bug_13_equal_sizes_are_no_equal_tokenizers(whole, shuffled):
    assert whole.vocabulary == shuffled.vocabulary
    (found, *_) = tokens.compare_tokenizers("teacher", shuffled, whole)
    assert found.severity == "error"
    assert "although both have as many" in found.what
    assert "data.options.tokenizer: shuffled" in found.fix
    assert tokens.compare_tokenizers("teacher", whole, ours(byte_level())) == []


def test_bug_38_other_names_for_the_same_bytes_are_no_difference():
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers

    from language.tokenizers_made import wrapped

    # " a" is "Ġa" to a byte-level tokenizer and "▁a" to SentencePiece.
    letters = ["a", "b", "c"]
    level = Backend(models.BPE(vocab={"<e>": 0, "a": 1, "b": 2, "c": 3, "Ġ": 4, "Ġa": 5}, merges=[("Ġ", "a")]))
    level.decoder = decoders.ByteLevel()
    piece = Backend(models.BPE(vocab={"<e>": 0, "a": 1, "b": 2, "c": 3, "▁": 4, "▁a": 5}, merges=[("▁", "a")]))
    piece.normalizer, piece.decoder = normalizers.Replace(" ", "▁"), decoders.Replace("▁", " ")
    one, other = (ours(wrapped(b, eos_token="<e>"), "".join(letters)) for b in (level, piece))
    found = tokens.compare_tokenizers("teacher", one, other)
    assert severities(found) == ["note"]
    assert "'Ġ'" in found[0].evidence
    assert "'▁'" in found[0].evidence


@pytest.mark.parametrize(("rows", "severity"), [(257, []), (320, ["note"]), (256, ["error"])])
def test_rows_11_and_12_padded_heads_are_told_from_heads_that_are_too_small(rows, severity):
    assert severities(tokens.check_rows("teacher", rows, 257)) == severity


def test_a_model_that_lacks_tokens_of_the_data_is_an_error_and_one_with_more_is_none(whole):
    fewer = ours(byte_level(), "fewer")
    fewer.backend.add_tokens(["<think>"])
    assert severities(tokens.compare_tokenizers("teacher", whole, fewer)) == ["error"]
    assert severities(tokens.compare_tokenizers("teacher", fewer, whole)) == ["note"]


def test_bug_27_the_token_that_fills_and_ends_is_pointed_out(whole):
    assert tokens.check_padding(whole) == []
    for pad in ("<|end|>", None):
        (found,) = tokens.check_padding(ours(byte_level(pad_token=pad)))
        assert found.severity == "note"
        assert "'<|end|>'" in found.evidence


def test_special_tokens_of_other_names_are_named():
    base, chat = ours(byte_level()), ours(byte_level(eos_token="<|turn|>"))
    found = tokens.compare_special_tokens("teacher", base, chat)
    assert severities(found) == ["warning"]
    assert "eos '<|end|>' and '<|turn|>'" in found[0].evidence


def test_bug_39_templates_are_rendered_side_by_side():
    one, other = ours(byte_level()), ours(byte_level())
    one.backend.chat_template, other.backend.chat_template = CHATML, PLAIN
    (found,) = conversations.compare_templates("teacher", one, other)
    assert found.severity == "warning"
    assert "<|im_start|>user" in found.evidence
    assert "user: What is" in found.evidence
    # Equal for most conversations: only the space at the edge of a message differs.
    other.backend.chat_template = CHATML.replace("m['content']", "m['content'].strip()")
    (found,) = conversations.compare_templates("teacher", one, other)
    assert "sample 2" in found.evidence
    other.backend.chat_template = CHATML
    assert conversations.compare_templates("teacher", one, other) == []
    other.backend.chat_template = None
    assert severities(conversations.compare_templates("teacher", one, other)) == ["note"]


def chat_tokenizer():
    made = byte_level()
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    made.chat_template = CHATML
    return ours(made, "chat")


def test_bug_40_answers_end_where_generation_stops():
    tokenizer = chat_tokenizer()
    turn, end = tokenizer.backend.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_id
    assert conversations.turn_end(tokenizer) == turn
    assert conversations.check_ends("student", tokenizer, {turn, end}) == []
    # A base model's configuration stops at the end of documents alone: it would write on after each answer.
    (found,) = conversations.check_ends("student", tokenizer, {end})
    assert "answer with '<|im_end|>'" in found.evidence
    assert conversations.check_ends("student", tokenizer, {end}, conversations=False) == []
    (found,) = conversations.check_ends("student", tokenizer, {turn})
    assert "'<|end|>'" in found.evidence
    found = conversations.check_ends("student", tokenizer, {7}, trained=True)
    assert severities(found) == ["warning", "warning"]
    assert f"eos_token_id: [7, {turn}]" in found[1].fix
    (found,) = conversations.compare_ends("student", {end}, {turn, end}, "teacher")
    assert "stop at different tokens" in found.what


def test_ends_are_read_from_the_generation_configuration_first():
    model = tiny()
    model.config.eos_token_id, model.generation_config.eos_token_id = 5, [7, 9]
    assert conversations.stops_of(model) == {7, 9}
    model.generation_config.eos_token_id = None
    assert conversations.stops_of(model) == {5}


def test_bug_37_sequences_begin_with_one_begin_token():
    tokenizer = ours(sentencepiece_bpe())
    begin = tokenizer.bos_id
    good, doubled, bare = (np.array(ids) for ids in ([begin, 70, 71], [begin, begin, 70], [70, 71, 72]))
    assert conversations.check_begins(tokenizer, [good, good]) == []
    (found,) = conversations.check_begins(tokenizer, [good, doubled])
    assert (found.severity, found.evidence) == ("error", "1 of 2 with '<s>' twice")
    (found,) = conversations.check_begins(tokenizer, [bare])
    assert found.severity == "warning"
    assert "bos: true" in found.fix
    # GPT-2's kind has such a token and never puts it before a text.
    assert conversations.check_begins(ours(byte_level()), [bare]) == []


def test_rows_longer_than_a_model_or_its_tokenizer_reads(whole):
    model = tiny(context=64)
    assert models.check_context("teacher", model, whole, 64) == []
    assert severities(models.check_context("teacher", model, whole, 65)) == ["error"]
    short = ours(byte_level())
    short.backend.model_max_length = 32
    assert severities(models.check_context("teacher", model, short, 48)) == ["warning"]


@pytest.mark.parametrize(
    ("key", "value"), [("final_logit_softcapping", 30.0), ("logit_scale", 0.0625), ("logits_scaling", 8.0)]
)
def test_bug_07_softcaps_and_scales_are_named(key, value):
    model = tiny()
    assert models.check_logit_changes("teacher", model) == []
    setattr(model.config, key, value)
    (found,) = models.check_logit_changes("teacher", model)
    assert f"{key} {value}" in found.evidence


def test_bug_08_adapters_on_tied_heads():
    for options, expected in (({}, []), ({"targets": ["q_proj", "lm_head"]}, ["warning"])):
        adapted = add_lora(tiny(), rank=2, **options)
        assert severities(models.check_adapters("student", adapted)) == expected
    untied = add_lora(tiny(tied=False), rank=2, targets=["lm_head"])
    assert models.check_adapters("student", untied) == []


def test_bug_41_types_that_cannot_carry_training():
    options = {"lr": 1e-4, "precision": "fp32"}
    assert models.check_numbers("student", tiny(), trains=True, **options) == []
    assert severities(models.check_numbers("student", tiny().bfloat16(), trains=True, **options)) == ["warning"]
    assert severities(models.check_numbers("student", tiny().half(), trains=True, **options)) == ["error"]
    assert severities(models.check_numbers("teacher", tiny().half(), trains=False, **options)) == ["note"]


def test_values_at_the_end_of_float16():
    near = torch.tensor([1.0, 30_000.0])
    assert models.check_values("teacher", near, "logits", half=False) == []
    assert severities(models.check_values("teacher", near, "logits", half=True)) == ["warning"]
    over = near.half() * 3
    assert severities(models.check_values("teacher", over, "logits", half=True)) == ["error"]


def test_settings_of_sampling_and_ignorance_are_told():
    model = tiny()
    model.generation_config.temperature, model.generation_config.top_p = 0.6, 0.9
    (found,) = models.check_sampling("teacher", model)
    assert found.evidence == "temperature 0.6, top_p 0.9"
    assert models.check_knows("teacher", 3.0, 257) == []
    assert severities(models.check_knows("teacher", 5.5, 257)) == ["warning"]


def test_bug_32_a_server_that_ignores_temperature():
    honest = Probe(top=20, honours_temperature=True, by_id=True)
    raw = Probe(top=5, honours_temperature=False, by_id=True)
    assert servers.check_server("teacher", honest, asked=20, temperature=2.0) == []
    found = servers.check_server("teacher", raw, asked=20, temperature=2.0)
    assert severities(found) == ["warning", "error"]
    assert "processed_logprobs" in found[1].fix
    assert severities(servers.check_server("teacher", raw, asked=5, temperature=1.0)) == ["note"]


def test_rows_14_and_16_mass_beyond_the_listed_tokens():
    mask = torch.tensor([[True, True, False]])
    small, large = torch.tensor([[0.01, 0.02, 0.9]]).log(), torch.tensor([[0.3, 0.5, 0.0]]).log()
    assert servers.check_tail("teacher", small, mask, 8) == []
    (found,) = servers.check_tail("teacher", large, mask, 8)
    assert "hold 60% on average, the rest 40%" in found.evidence


def test_bug_29_answers_that_are_cut_empty_or_unknown(whole):
    end = whole.eos_id
    answered = [Encoded(np.array([*s.ids[:-1], end]), s.learn, s.prompt) for s in sequences(8, low=6)]
    assert text.check_text(TextSource("good", answered, whole, context=16)) == []
    cut = [Encoded(np.arange(20, 37), np.arange(17) >= 2, 2)]
    (found,) = text.check_text(TextSource("cut", [*answered, *cut], whole, context=16))
    assert "1 of 9 (11%)" in found.evidence
    empty = [Encoded(np.array([20, 21, end]), np.arange(3) >= 2, 2)] * 4
    (found,) = text.check_text(TextSource("empty", [*answered, *empty], whole, context=16))
    assert "4 of 12 (33%)" in found.evidence
    words = ours(sentencepiece_bpe())
    unknown = [Encoded(np.full(6, words.backend.unk_token_id), np.arange(6) >= 2, 0)]
    (found,) = text.check_text(TextSource("unknown", unknown, words, context=16))
    assert "'<unk>'" in found.evidence


def recipe(folder, teacher, student, **options):
    (folder / "text.txt").write_text("Anne was a good man in want of a fortune. " * 60)
    return {
        "task": "causal-lm",
        "data": {"name": "text", "path": str(folder / "text.txt"), "options": {"context": 32, "test": 0.2, **options}},
        "roles": {"teacher": {"model": teacher}, "student": {"model": student}},
        "method": {"name": "word_kd"},
        "train": {"epochs": 1, "batch_size": 4, "lr": 0.01},
    }


def model_folder(folder, made, *, seed=0, **special):
    model = tiny(seed, vocabulary=len(made))
    model.config.eos_token_id = model.generation_config.eos_token_id = special.get("ends", made.eos_token_id)
    model.save_pretrained(folder)
    return f"hf:{saved(made, folder, special.get('template', ''))}"


def test_models_of_two_tokenizers_are_refused_before_a_step(tmp_path):
    teacher = model_folder(tmp_path / "teacher", byte_level())
    other = byte_level(text="the quick brown fox jumps over the lazy dog " * 9 + WORDS[::-1])
    student = model_folder(tmp_path / "student", other)
    loaded = load_recipe(recipe(tmp_path, teacher, student))
    with pytest.raises(RecipeError, match="student means other text by the same ids"):
        build_stage(loaded, loaded.stages[0])


@pytest.mark.parametrize("kind", ["ensemble", "router"])
def test_one_of_several_teachers_with_other_tokens_is_refused_too(tmp_path, kind):
    right = model_folder(tmp_path / "right", byte_level())
    other = byte_level(text="the quick brown fox jumps over the lazy dog " * 9 + WORDS[::-1])
    members = [{"model": right}, {"model": model_folder(tmp_path / "wrong", other)}]
    made = recipe(tmp_path, None, SHAPE, tokenizer=right)
    if kind == "router":
        path = made["data"].pop("path")
        made["data"]["name"] = "domains"
        made["data"]["options"]["domains"] = {name: {"name": "text", "path": path} for name in ("a", "b")}
    made["roles"]["teacher"] = {kind: members if kind == "ensemble" else dict(zip("ab", members))}
    loaded = load_recipe(made)
    with pytest.raises(RecipeError, match="teacher means other text by the same ids"):
        build_stage(loaded, loaded.stages[0])


def test_check_puts_findings_under_the_stage_with_the_worst_first(tmp_path, capsys):
    teacher = model_folder(tmp_path / "teacher", byte_level(), ends=3)
    student = model_folder(tmp_path / "student", byte_level(), seed=1)
    checked = check_recipe(recipe(tmp_path, teacher, student))
    (found,) = checked.findings.values()
    whats = [f.what for f in found]
    assert checked.errors == 0
    assert severities(found) == sorted(severities(found), key=["error", "warning", "note"].index)
    assert any("teacher writes past the end of a sequence" in what for what in whats)
    assert any("student and teacher stop at different tokens" in what for what in whats)
    assert "with" in checked.verdict
    assert "warning" in checked.verdict
    ((rows),) = checked.tables.values()
    memory = dict(rows)["memory"]
    for part in ("weights of student", "weights of teacher", "gradients", "optimizer", "one step"):
        assert part in memory


def test_check_ends_with_a_status_when_there_is_an_error(tmp_path, capsys):
    import json

    import yaml

    # Half a teacher: its type ends at 65,504 and its weights are large, so what it says is no number.
    made = byte_level()
    folder = model_folder(tmp_path / "teacher", made)
    model = tiny(0, vocabulary=len(made))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e4)
        model.get_output_embeddings().weight.mul_(1e4)
    model.save_pretrained(tmp_path / "teacher")
    saved(made, tmp_path / "teacher")
    plain = recipe(tmp_path, {"name": folder, "dtype": "float16"}, {**SHAPE, "width": 16}, tokenizer=folder)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(plain))))
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(path)])
    assert stopped.value.code == 2
    assert "the recipe should not be run: 1 error" in capsys.readouterr().out
