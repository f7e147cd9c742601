"""Language models that leave limbeck say what the student says: folders, GGUF, ONNX; what is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from language.corpus import CHATML, sequences, tiny
from language.tokenizers_made import byte_level, ours, saved, sentencepiece_bpe, unigram
from limbeck.cli import main
from limbeck.data.text import TextLoader, TextSource, load_tokenizer
from limbeck.errors import LimbeckError, RecipeError
from limbeck.export import ModelCard
from limbeck.export.gguf import pre_tokenizer_name, write_gguf
from limbeck.export.language import export_language_model, logits_of
from limbeck.export.parity import compare
from limbeck.recipes.run import run_recipe
from limbeck.students.language import add_lora, student_from


@pytest.fixture(scope="module")
def tokenizer():
    made = byte_level()
    made.chat_template = CHATML
    return ours(made)


@pytest.fixture(scope="module")
def batches(tokenizer):
    rows = sequences(6, vocabulary=256)
    return list(TextLoader(TextSource("text", rows, tokenizer, context=32), batch_size=3, shuffle=False).epoch(0))


def narrow(tokenizer, batches):
    """A student that was cut in every way, so that nothing follows from anything in its configuration."""
    teacher = tiny(0, layers=3, width=32, heads=4, kv_heads=2, vocabulary=tokenizer.vocabulary)
    return student_from(teacher, text=lambda: batches, layers=2, heads=2, inner=56, width=24)


def test_a_gguf_file_that_another_library_reads_back_is_the_student(tokenizer, batches, tmp_path):
    from gguf import GGUFReader

    student = narrow(tokenizer, batches)
    card = ModelCard({"name": "word_kd"}, {"teacher": {"model": "t"}}, licence="public domain", data="text")
    path, parity = export_language_model(student, tokenizer, "gguf", tmp_path / "a.gguf", batches=batches, card=card)
    assert parity.max_relative_error < 1e-5
    assert parity.same_top == 1.0
    assert parity.same_writing
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
    fields = GGUFReader(path).fields
    said = {
        name: field.contents() for name, field in fields.items() if name.startswith(("general", "llama", "tokenizer"))
    }
    assert said["llama.attention.key_length"] == 8
    assert said["llama.attention.head_count_kv"] == 2
    assert said["tokenizer.chat_template"] == CHATML
    assert said["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert said["general.license"] == "public domain"


@pytest.mark.parametrize(("kind", "head"), [("Qwen2", 8), ("Qwen3", 128)])
def test_other_architectures_are_written_too(kind, head, tokenizer, batches, tmp_path):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=tokenizer.vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=head, max_position_embeddings=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    student = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    _, parity = export_language_model(student, tokenizer, "gguf", tmp_path / "a.gguf", batches=batches)
    assert parity.max_relative_error < 1e-5


def test_an_onnx_file_gives_the_students_logits_at_any_batch_and_length(tokenizer, batches, tmp_path):
    student = narrow(tokenizer, batches)
    before = copy.deepcopy(student.state_dict())
    path, parity = export_language_model(student, tokenizer, "onnx", tmp_path, batches=batches)
    assert path == tmp_path / "student.onnx"
    assert parity.max_relative_error < 1e-4
    assert parity.same_writing
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for size, length in ((1, 3), (5, 19)):
        ids = torch.randint(0, 200, (size, length))
        places = torch.arange(length).expand(size, length)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}
        (given,) = session.run(["logits"], {key: value.numpy() for key, value in inputs.items()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(given), student(ids).logits, rtol=1e-3, atol=1e-3)


def test_adapters_are_merged_into_a_folder_of_its_own(tokenizer, batches, tmp_path):
    from transformers import AutoModelForCausalLM

    student = add_lora(tiny(0, vocabulary=tokenizer.vocabulary), rank=2).eval()
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    _, parity = export_language_model(student, tokenizer, "pretrained", tmp_path / "out", batches=batches)
    assert parity.max_relative_error < 1e-5
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    found = compare(logits_of(student), logits_of(again), batches)
    assert found.max_relative_error < 1e-4
    assert hasattr(student, "merge_and_unload")
    assert again.generation_config.eos_token_id == tokenizer.eos_id


def test_models_that_say_something_else_are_not_written(tokenizer, batches):
    one, other = tiny(0), tiny(1)
    with pytest.raises(LimbeckError, match=r"more than 0\.0001"):
        compare(logits_of(one), logits_of(other), batches)
    # A difference that is allowed is still reported.
    found = compare(logits_of(one), logits_of(other), batches, tolerance=1e3)
    assert found.same_top < 1
    assert not found.same_writing
    assert "other greedy continuations" in str(found)


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(tokenizer, batches, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.vocabulary, n_embd=16, n_layer=1, n_head=2))
    model = tiny(0, vocabulary=tokenizer.vocabulary)
    with pytest.raises(LimbeckError, match="'gpt2'"):
        write_gguf(gpt2, tokenizer, tmp_path / "a.gguf")
    for made in (sentencepiece_bpe(), unigram()):
        with pytest.raises(LimbeckError, match="byte-level"):
            write_gguf(model, ours(made), tmp_path / "a.gguf")
    with pytest.raises(RecipeError, match="gguf"):
        export_language_model(model, tokenizer, "gguff", tmp_path, batches=batches)
    assert not (tmp_path / "a.gguf").exists()


def test_ways_of_splitting_have_gguf_names():
    level = {"type": "ByteLevel", "use_regex": False}
    bpe = {"type": "BPE", "merges": [["a", "b"]]}

    def whole(*parts, **model):
        pre = parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": list(parts)}
        return {"model": {**bpe, **model}, "pre_tokenizer": pre, "normalizer": None}

    def split(regex):
        return {"type": "Split", "pattern": {"Regex": regex}}

    words = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
    assert pre_tokenizer_name(whole({"type": "ByteLevel", "use_regex": True})) == "gpt-2"
    assert pre_tokenizer_name(whole(level, merges=[])) == "gpt-2"
    assert pre_tokenizer_name(whole({"type": "Digits"}, {"type": "ByteLevel", "use_regex": True})) == "smollm"
    assert pre_tokenizer_name(whole(split(words + "{1,3}| ?x"), level)) == "llama-bpe"
    assert pre_tokenizer_name(whole(split(words + "| ?x"), level)) == "qwen2"
    with pytest.raises(LimbeckError, match="Punctuation"):
        pre_tokenizer_name(whole({"type": "Punctuation"}, level))


def test_a_run_exports_in_every_format_and_its_folder_has_a_card(tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    folder = saved(byte_level(), tmp_path)
    (tmp_path / "text.txt").write_text("Anne was a good man in want of a fortune. " * 60)
    shape = {"name": "llama", "layers": 2, "width": 32, "heads": 4}
    recipe = {
        "task": "causal-lm",
        "data": {"name": "text", "path": str(tmp_path / "text.txt"), "options": {"tokenizer": folder, "context": 32}},
        "roles": {"teacher": {"model": shape}, "student": {"from": "teacher", "lora": {"rank": 2, "merge": True}}},
        "method": {"name": "word_kd", "temperature": 2.0},
        "train": {"epochs": 1, "batch_size": 8, "lr": 0.1},
        "evaluate": ["token_loss", "size"],
    }
    run = tmp_path / "run"
    run_recipe(recipe, out=run)
    AutoModelForCausalLM.from_pretrained(run / "student")
    assert not (run / "student" / "adapter_config.json").exists()
    card = (run / "student" / "README.md").read_text()
    for part in ("library_name: transformers", "`llama`", "`word_kd`", "| `temperature` | `2.0` |", "nats", "32]`"):
        assert part in card, part
    assert "float32" not in card
    for form in ("pretrained", "gguf"):
        main_without_exit(["export", str(run), "--format", form])
        assert "the same greedy continuations" in " ".join(capsys.readouterr().out.split())
    assert {p.name for p in run.iterdir()} >= {"exported", "student.gguf"}
    assert json.loads((run / "exported" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def main_without_exit(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0


def test_the_tokenizer_of_bytes_survives_gguf(batches, tmp_path):
    bytes_only = load_tokenizer("bytes")
    _, parity = export_language_model(tiny(0), bytes_only, "gguf", tmp_path / "a.gguf", batches=batches)
    assert parity.max_relative_error < 1e-5
