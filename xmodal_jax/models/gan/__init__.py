"""Conditional GANs of images: `GANConfig` is what one is made of, `make_gan` makes it.

::

    from xmodal_jax.models.gan import ClassCondition, GANConfig, GradientPenalty, make_gan

    config = GANConfig(objective="wgan", condition=ClassCondition(), penalty=GradientPenalty())
    gan = make_gan(config, shape=(32, 32, 3), classes=10)
    params, variables = gan.init(key, batch)
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "augmentation": "AdaptiveAugment DiffAugment ScheduledAugment",
        "conditions": "ClassCondition NoCondition SentenceCondition WordsCondition",
        "config": "ContrastiveLosses FrozenFeatures GANConfig Reconstruction",
        "first_stage": "FirstStage first_stage_config",
        "inputs": "FrozenCaptioner FrozenEncoder",
        "method": "ConditionalGAN make_gan",
        "objective": "adversarial_loss",
        "penalties": "DraganPenalty GradientPenalty MatchingAwarePenalty R1Penalty R2Penalty",
        "presets": "OBJECTIVE_PRESETS OPTIMIZER_PRESETS with_preset",
    },
)
