"""Trained runs on new data.

::

    from xmodal_jax.inference import load

    model = load("runs/contrastive-20250131-101500")
    print(model.describe())
    model.embed(images=["a.png", "b.png"])  # [2, dim]
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "loading": "load kind_of_run",
        "model": "Classification TrainedModel",
        "fusion": "FusionModel overlay",
        "autoencoders": "Autoencoder MultimodalAutoencoder MultimodalFlowModel",
        "outputs": "OutputFormat",
        "inputs": "InputFormat InputSource",
        "neighbours": "Nearest nearest",
        "contrastive": "ContrastiveModel SearchResult",
        "index": "Index",
        "approximate": "NeighbourGraph",
        "index_files": "DamagedIndex",
        "text": "Captioner SpeechRecognizer",
        "long_audio": "Transcript Word WordDecoder",
        "subtitles": "Subtitle make_subtitles to_srt to_vtt",
        "windows": "PauseDetector Window WindowLayout split_windows",
        "speech": "SpeechSynthesizer",
        "vocoder": "Vocoder load_vocoder",
        "images": "FlowSynthesizer ImageSynthesizer",
        "translators": "SpokenText TranslationOptions Translator VoiceOptions load_recognizer load_translator "
        "load_translators",
        "translate": "TranslationInput apply_chain find_candidates find_chain find_further_input find_inputs "
        "read_inputs table_rows to_cell write_outputs write_subtitles",
    },
)
