"""Variational autoencoders of one or of several modalities.

::

    from xmodal_jax.models.vae import MVTCAEConfig, make_multimodal_vae, sizes_of

    config = MVTCAEConfig(latent=32, beta=1.0)
    vae = make_multimodal_vae(config, sizes_of(batch, ("image", "text"), config, vocab_size=1000))
    params = vae.method.init(key, batch)
    latents = vae.infer(params, batch, [True, False], key)  # given the image alone
    vae.decode(params, latents.z, key=None)["text"]  # ids [1, B, L]
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "adapter": "as_multimodal",
        "inference": "LatentSamples hamiltonian_monte_carlo",
        "judges": "JudgeOutputs Judges make_judges",
        "modalities": "AudioConfig ImageConfig LabelConfig MeasuredConfig ModalityConfig ModalityConfigs NetworkInputs "
        "SeriesConfig TextConfig VectorConfig as_batch preprocess sizes_of",
        "multimodal": "MultimodalVAE make_multimodal_vae",
        "multimodal_models": "CMVAEConfig CRMVAEConfig CoDEVAEConfig DMVAEConfig JMVAEConfig JNFConfig MHVAEConfig "
        "MMJSDConfig MMVAEConfig MMVAEPlusConfig MMVMConfig MVAEConfig MVTCAEConfig MoPoEConfig MultimodalVAEConfig "
        "NexusConfig TELBOConfig",
        "single": "VAE make_vae",
        "single_models": "AAEConfig AEConfig AutoencoderConfig BetaVAEConfig CVAEConfig DAEConfig IWAEConfig "
        "JSDVAEConfig VAEConfig WAEMMDConfig",
    },
)
