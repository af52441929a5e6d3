"""Evaluation: predictions of a trained method over whole data sets, and their scores.

::

    from xmodal_jax.evaluation import Embedder, Gallery

    gallery = Gallery(test, 1000)
    embeddings = Embedder(method, tokenize, batch_size=250)(params, gallery)
    gallery.scores(embeddings)["image_to_text/recall@1"]
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "classification": "ClassificationConfig Classifier LabelledSplit accuracies evaluate_splits fit_unimodal "
        "subsets",
        "embeddings": "Embedder Gallery class_prompts classification_scores directions predict_all retrieval_scores",
        "gap": "GapCorrection fit_gap_correction",
        "image_judge": "Judge JudgeReport judge_scores load_judge small_accuracies",
        "images": "ImageGenerator SplitImageGenerator",
        "information_gain": "InformationGainEvaluator InformationGains best_next_modality",
        "latent": "LatentEvaluation LatentEvaluator LatentResults SourceLatents Translations evaluate_latent",
        "latent_density": "LatentDensity fit_flow fit_gaussian_mixture prior_density",
        "learned_captions": "CaptionLearning",
        "learning": "ImageClassifier LabelledImages LearningEvaluation LearningEvaluator LearningScores image_learning",
        "matching_density": "fit_flow_matching",
        "scene_factors": "SceneResults SceneTests factor_scores",
        "speech": "GriffinLimVocoder PitchTracker RecognizedSpeech SynthesisComparison Synthesizer Utterances "
        "compare_speech copy_synthesis decode_frames first_examples measure_prosody mel_distances read_recorded "
        "recognize recordings_of with_statistics",
        "vocoder": "NeuralVocoder real_time_factor vocoder_scores",
        "text_only_captions": "TextOnlyCaptioner",
        "text": "LanguageModelConfig ReferenceTexts TextGenerationConfig TextGenerator read_language_model "
        "source_modality source_text_retrieval",
    },
)
