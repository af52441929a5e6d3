"""Networks: Flax modules, one file per family, and the configurations by which encoders and decoders are chosen.

::

    from xmodal_jax.nets import ViTConfig, build_encoder

    encoder = build_encoder("image", ViTConfig(width=128, patch=4))
    params = encoder.init(key, images)["params"]
    tokens = encoder.apply({"params": params}, images)  # Tokens(values [B, N, 128], mask)
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "attention": "MultiHeadAttention attention_weights",
        "attention_maps": "token_attention",
        "audio": "AudioTransformer",
        "conv": "Conv ConvTranspose apply_mask",
        "cross_modal": "CrossModalOutput cross_modal_transform init_cross_modal",
        "custom": "FunctionEncoder ModuleEncoder as_encoder",
        "decoders": "AutoregressiveDecoderConfig ConvDecoderConfig DecoderConfig FrameDecoderConfig MLPDecoderConfig "
        "ParallelDecoderConfig ResidualDecoderConfig Size",
        "dropout": "Dropout DropPath TokenDropout fold_in_layer",
        "encoders": "AudioTransformerConfig ConvNetConfig CustomEncoderConfig DCGANEncoderConfig "
        "FeatureTransformerConfig "
        "FrameTransformerConfig MLPEncoderConfig SeriesTransformerConfig VectorMLPConfig "
        "PretrainedEncoderConfig R3GANEncoderConfig ResNet18Config ResNet34Config ResNet50Config ResidualEncoderConfig "
        "StackedFramesConfig TextDecoderConfig TextTransformerConfig TubeletViTConfig ViTConfig build_decoder "
        "build_encoder build_pool",
        "flows": "AutoregressiveFlow MADE",
        "fusion": "AdditiveAttention BottleneckAttention CoAttention Concatenation FiLM Fusion FusionOutput "
        "GatedCrossAttention LowRankBilinear MergedAttention PerceiverResampler build_fusion",
        "gan": "Critic DCGANGenerator DCGANGeneratorConfig MLPGenerator MLPGeneratorConfig ObjectGeneratorConfig "
        "R3GANGeneratorConfig ResidualGenerator ResidualGeneratorConfig",
        "heads": "AnyHead HeadsByKind IdentityHead IdentityHeadConfig LinearHead LinearHeadConfig MLPHead "
        "MLPHeadConfig OwnHeadConfig SAILHead SAILHeadConfig ShareLockHead ShareLockHeadConfig as_head",
        "image": "ConvNet FlatMLP PlainConvNet ResNet ViT cut_patches",
        "measured": "FeatureTransformer SeriesTransformer VectorMLP",
        "norm": "GroupNorm",
        "objects": "ObjectGenerator SlotAttention",
        "pooling": "Pool max_pool",
        "r3gan": "R3GANEncoder R3GANGenerator",
        "spectral": "spectral_normalize spectral_vectors",
        "speech": "Aligner SpeechNet ValueEmbedding VariancePredictor",
        "text": "TextDecoder TextTransformer",
        "transformer": "PositionEmbedding Transformer TransformerBlock TransformerEncoder TransformerStyle "
        "sincos_grid sincos_positions stack_layers",
        "vocoder": "ConvNeXtStack DepthwiseConv VocoderFrames VocoderNet",
        "video": "FrameTransformer StackedFrames TubeletViT cut_tubelets",
    },
)
