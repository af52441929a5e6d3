"""Metrics of trained models, computed on whole sets of embeddings, samples, latents, speech or texts."""

from xmodal_jax.metrics.classification import (
    class_embeddings,
    classify_by_neighbours,
    classify_by_probe,
    confusion_matrix,
    expected_calibration_error,
    linear_probe,
    predict_classes,
    zero_shot,
)
from xmodal_jax.metrics.clustering import ClusterAgreement, kmeans_clustering
from xmodal_jax.metrics.coherence import coherence_matrix, cross_coherence, joint_coherence, subsets
from xmodal_jax.metrics.disentanglement import DCI, dci, mutual_information_gap, sap
from xmodal_jax.metrics.generative import (
    MeanStd,
    Moments,
    add_moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    merge_moments,
    moments,
    r_precision,
)
from xmodal_jax.metrics.information_gain import (
    GainAgreement,
    compare_gains,
    expected_information_gain,
    information_gain,
    mean_gain,
)
from xmodal_jax.metrics.intervals import Interval, bootstrap_interval
from xmodal_jax.metrics.latent import alignment, modality_gap, uniformity
from xmodal_jax.metrics.modes import ModeCoverage, mode_coverage
from xmodal_jax.metrics.neighbours import (
    DensityCoverage,
    Neighbours,
    PrecisionRecall,
    density_coverage,
    nearest_neighbours,
    precision_recall,
)
from xmodal_jax.metrics.perceptual import missing_score_packages, perceptual_scores
from xmodal_jax.metrics.reconstruction import mse, psnr, ssim
from xmodal_jax.metrics.retrieval import mixed_retrieval, ranks, retrieval
from xmodal_jax.metrics.speech import PitchAgreement, dynamic_time_warping, mel_distance, pitch_agreement
from xmodal_jax.metrics.text import align_words, caption_scores, cider, error_rates

__all__ = [
    "GainAgreement",
    "Interval",
    "bootstrap_interval",
    "classify_by_neighbours",
    "classify_by_probe",
    "expected_calibration_error",
    "ClusterAgreement",
    "DCI",
    "DensityCoverage",
    "MeanStd",
    "ModeCoverage",
    "Moments",
    "Neighbours",
    "PrecisionRecall",
    "add_moments",
    "align_words",
    "alignment",
    "compare_gains",
    "caption_scores",
    "cider",
    "class_embeddings",
    "kmeans_clustering",
    "coherence_matrix",
    "confusion_matrix",
    "cross_coherence",
    "dci",
    "density_coverage",
    "PitchAgreement",
    "dynamic_time_warping",
    "pitch_agreement",
    "error_rates",
    "expected_information_gain",
    "frechet_distance",
    "inception_score",
    "information_gain",
    "joint_coherence",
    "kernel_distance",
    "linear_probe",
    "mean_gain",
    "mel_distance",
    "merge_moments",
    "modality_gap",
    "missing_score_packages",
    "mixed_retrieval",
    "mode_coverage",
    "moments",
    "mse",
    "mutual_information_gap",
    "nearest_neighbours",
    "perceptual_scores",
    "precision_recall",
    "predict_classes",
    "psnr",
    "r_precision",
    "ranks",
    "retrieval",
    "sap",
    "ssim",
    "subsets",
    "uniformity",
    "zero_shot",
]
