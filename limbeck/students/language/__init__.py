"""Causal language models: pretrained ones, tiny ones made from a configuration, and students made of a teacher."""

from limbeck.students.language.adapters import adapted, add_lora
from limbeck.students.language.blocks import decoder_layers, keep_layers, spread
from limbeck.students.language.construction import cut, student_from
from limbeck.students.language.models import build_language_model, known_language_model, llama, parameters
from limbeck.students.language.scores import WidthImportance, block_influence, loss_increase, width_importance
from limbeck.students.language.vocabulary import trim_embeddings
from limbeck.students.language.width import narrowed

__all__ = [
    "WidthImportance",
    "adapted",
    "add_lora",
    "block_influence",
    "build_language_model",
    "cut",
    "decoder_layers",
    "keep_layers",
    "known_language_model",
    "llama",
    "loss_increase",
    "narrowed",
    "parameters",
    "spread",
    "student_from",
    "trim_embeddings",
    "width_importance",
]
