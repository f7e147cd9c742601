"""Losses and metrics as pure functions of tensors, for any training loop.

They share their conventions. Hyperparameters are keyword-only. ``reduction`` is ``none``, ``mean``, ``sum`` or
``batchmean`` and ``mask`` says which positions count. Logits and relations of a teacher are constants; losses between
feature maps differentiate both sides, because either may have passed a trained projector.
Half-precision inputs are computed in float32, also under autocast, and logits of any size give finite values and
gradients.
"""

from limbeck.functional.activation_boundaries import negative_part_mean, partial_distance
from limbeck.functional.binary_divergences import binary_kl, binary_kl_norm
from limbeck.functional.boosted_targets import boosted_cross_entropy
from limbeck.functional.classification import confidence_weights, cross_entropy
from limbeck.functional.conditional_information import conditional_mutual_information
from limbeck.functional.contrastive import log_partition, memory_scores, noise_contrastive
from limbeck.functional.correlation import (
    batch_correlation,
    class_correlation,
    inter_class_distance,
    intra_class_distance,
    pearson,
)
from limbeck.functional.decoupled import DecoupledKL, decoupled_kl
from limbeck.functional.divergence_registry import Divergence, divergence, divergence_names, register_divergence
from limbeck.functional.divergences import js, kl, tempered_log_softmax
from limbeck.functional.feature_direction import norm_and_direction
from limbeck.functional.feature_likelihood import gaussian_feature_nll
from limbeck.functional.feature_maps import (
    attention_map,
    attention_transfer,
    flow_matrix,
    hierarchical_context,
    mean_squared_features,
)
from limbeck.functional.focal import average_logits, average_probabilities, balanced_class_weights, focal_cross_entropy
from limbeck.functional.gradient_alignment import align_gradients
from limbeck.functional.head_mixture import mixed_log_probabilities, search_mixture
from limbeck.functional.kernel_self_distillation import (
    constant_weight_spectrum,
    greedy_weights,
    optimal_weight,
    rbf_kernel,
    self_distillation_limit,
    self_distillation_path,
    self_distillation_spectrum,
    spectrum_limit,
)
from limbeck.functional.logit_transforms import LOGIT_TRANSFORMS, logit_transform, standardize
from limbeck.functional.loss_head import projected_token_losses, token_losses
from limbeck.functional.meta_distillation import (
    anchored_step,
    contraction,
    meta_distillation_chain,
    mix_log_probabilities,
)
from limbeck.functional.neuron_selectivity import neuron_selectivity
from limbeck.functional.normalized import NormalizedKD, normalized_kd
from limbeck.functional.plackett_luce import label_first_order, plackett_luce, plackett_luce_distillation
from limbeck.functional.policy import group_statistics, kl_estimate, policy_surrogate, reward_to_go
from limbeck.functional.preference import implicit_reward, preference_loss
from limbeck.functional.probability_error import probability_error
from limbeck.functional.rank_correlation import kendall_tau, ranks, spearman_rho
from limbeck.functional.reduction import Reduction, reduce
from limbeck.functional.relations import (
    consecutive_correlation,
    correlation_congruence,
    pairwise_distances,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
    similarity_preserving,
)
from limbeck.functional.sampled_targets import SampledLoss, draw_classes, importance_weights
from limbeck.functional.selective_scan import combined_logits, selective_scan
from limbeck.functional.self_labels import nontarget_cross_entropy, target_values, zipf_labels
from limbeck.functional.sinkhorn import sinkhorn_distance, sinkhorn_plan
from limbeck.functional.sparse_labels import sparse_cross_entropy, spread_rest
from limbeck.functional.sparse_targets import divergence_bounds, top_k, top_k_loss
from limbeck.functional.subclasses import class_log_probabilities, fit_subclasses, subclass_kl, subclass_log_targets
from limbeck.functional.token_graph import context_difference, token_contrast
from limbeck.functional.token_losses import LabelLoss, divergence_loss
from limbeck.functional.training_free import (
    activation_pattern_score,
    class_correlation_distance,
    classifier_gradient,
    relation_score,
    semantic_score,
)

__all__ = [
    "LOGIT_TRANSFORMS",
    "DecoupledKL",
    "Divergence",
    "LabelLoss",
    "NormalizedKD",
    "Reduction",
    "SampledLoss",
    "activation_pattern_score",
    "align_gradients",
    "anchored_step",
    "attention_map",
    "attention_transfer",
    "average_logits",
    "average_probabilities",
    "balanced_class_weights",
    "batch_correlation",
    "binary_kl",
    "binary_kl_norm",
    "boosted_cross_entropy",
    "class_correlation",
    "class_correlation_distance",
    "class_log_probabilities",
    "classifier_gradient",
    "combined_logits",
    "conditional_mutual_information",
    "confidence_weights",
    "consecutive_correlation",
    "constant_weight_spectrum",
    "context_difference",
    "contraction",
    "correlation_congruence",
    "cross_entropy",
    "decoupled_kl",
    "divergence",
    "divergence_bounds",
    "divergence_loss",
    "divergence_names",
    "draw_classes",
    "fit_subclasses",
    "flow_matrix",
    "focal_cross_entropy",
    "gaussian_feature_nll",
    "greedy_weights",
    "group_statistics",
    "hierarchical_context",
    "implicit_reward",
    "importance_weights",
    "inter_class_distance",
    "intra_class_distance",
    "js",
    "kendall_tau",
    "kl",
    "kl_estimate",
    "label_first_order",
    "log_partition",
    "logit_transform",
    "mean_squared_features",
    "memory_scores",
    "meta_distillation_chain",
    "mix_log_probabilities",
    "mixed_log_probabilities",
    "negative_part_mean",
    "neuron_selectivity",
    "noise_contrastive",
    "nontarget_cross_entropy",
    "norm_and_direction",
    "normalized_kd",
    "optimal_weight",
    "pairwise_distances",
    "partial_distance",
    "pearson",
    "plackett_luce",
    "plackett_luce_distillation",
    "policy_surrogate",
    "preference_loss",
    "probabilistic_transfer",
    "probability_error",
    "projected_token_losses",
    "ranks",
    "rbf_kernel",
    "reduce",
    "register_divergence",
    "relation_score",
    "relational_angle",
    "relational_distance",
    "reward_to_go",
    "search_mixture",
    "selective_scan",
    "self_distillation_limit",
    "self_distillation_path",
    "self_distillation_spectrum",
    "semantic_score",
    "similarity_preserving",
    "sinkhorn_distance",
    "sinkhorn_plan",
    "sparse_cross_entropy",
    "spearman_rho",
    "spectrum_limit",
    "spread_rest",
    "standardize",
    "subclass_kl",
    "subclass_log_targets",
    "target_values",
    "tempered_log_softmax",
    "token_contrast",
    "token_losses",
    "top_k",
    "top_k_loss",
    "zipf_labels",
]
