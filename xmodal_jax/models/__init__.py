"""Methods: networks and losses bound into the pure functions of `types.Method` and `types.GAN`.

GANs and autoencoders are packages of their own, `models.gan` and `models.vae`.

::

    from xmodal_jax.models import ContrastiveConfig, make_contrastive

    method = make_contrastive(ContrastiveConfig(), ("text", "image"), vocab_size=1000)
    params = method.init(key, batch)
    loss, metrics = method.loss(params, batch, key)
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "contrastive": "ContrastiveConfig make_contrastive matching_ids text_ids",
        "fusion": "FusionConfig ClassifierOutput make_fusion make_token_attention",
        "lora": "LoRA with_lora",
        "seq2seq": "Seq2SeqConfig Seq2SeqOutput AttentionObjective CTCObjective JointObjective ContrastiveObjective "
        "BeamSearchConfig GreedySearchConfig SamplingConfig CTCBestPathConfig Captioner make_seq2seq make_captioner "
        "make_text_generator make_feature_extractor start_decoding",
        "speech": "AlignedSpeech ProsodyStatistics SpeechConfig SynthesizedSpeech make_converter make_speech "
        "make_synthesizer precompute_speech recorded_prosody",
        "towers": "AudioFeatures Augmentation make_encoder make_tower",
        "vocoder": "ReconstructedAudio VocoderConfig make_vocode make_vocoder spectral_envelope",
    },
)
