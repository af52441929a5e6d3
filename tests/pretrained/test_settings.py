"""What the files of a checkpoint beside its weights say: scaling of pixels, pooling of sentences, lengths of texts."""

import dataclasses
import json
from types import SimpleNamespace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from tests.pretrained import checkpoints as made
from tests.pretrained.peers import import_transformers
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.media import Resize, to_square
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.models.towers import max_audio_seconds, read_pretrained_config
from xmodal_jax.nets.encoders import PretrainedEncoderConfig, TextTransformerConfig, max_text_tokens
from xmodal_jax.nets.pooling import POOLS as POOLS_HERE
from xmodal_jax.preprocess.image import standardize, to_float
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.export import TrainedEncoder, make_processor_config, save_encoder
from xmodal_jax.pretrained.files import read_processor, read_sentence_settings
from xmodal_jax.pretrained.images import CLIP, pixel_scale, resize_settings
from xmodal_jax.pretrained.load import complete_config, load_encoder, make_module, parse_config
from xmodal_jax.train.config import StartConfig
from xmodal_jax.transfer.pretrained import pretrained_remarks

WORDS = dict(vocab_size=30)
RESNET = dict(model_type="resnet", embedding_size=5, hidden_sizes=[7, 11], depths=[1, 1], layer_type="basic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpleRun(StartConfig):
    model: ContrastiveConfig = ContrastiveConfig()


OWN = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}


def load(folder, modality, head="pool", **sizes):
    return load_encoder(folder, modality, EncoderOptions(head=head), progress=False, **sizes)


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "files",
    [
        {"processor_config.json": {"image_processor": OWN, "processor_class": "CLIPProcessor"}},
        {"preprocessor_config.json": OWN},
        {"processor_config.json": {"processor_class": "CLIPProcessor"}, "preprocessor_config.json": OWN},
        {"processor_config.json": {"image_processor": OWN}, "preprocessor_config.json": {"image_mean": [0, 0, 0]}},
        {"processor_config.json": {"video_processor": OWN}},
        {"video_preprocessor_config.json": OWN},
    ],
)  # fmt: skip
def test_the_processor_is_read_wherever_a_version_writes_it(tmp_path, files):
    for name, content in files.items():
        write(tmp_path, name, content)
    assert read_processor(tmp_path) == OWN
    encoder = make_module("image", complete_config(made.CLIP, read_processor(tmp_path)))
    assert encoder.scale == ((0.5, 0.4, 0.3), (0.5, 0.25, 0.2)) != CLIP


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False},
        {"do_normalize": False, "rescale_factor": 0.5},
        {"image_std": 0.25},  # one number for all colours
    ],
)
def test_pixels_are_scaled_as_by_the_processor(settings):
    """By the processor's own arithmetic on the pixels, in double precision."""
    settings = {**OWN, **settings}
    encoder = make_module("image", complete_config(made.CLIP, settings))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.uint8)
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    expected = pixels * np.float64(factor)
    if settings.get("do_normalize", True):
        expected = (expected - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    found = standardize(to_float(jnp.asarray(pixels)), *encoder.scale)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_processor_that_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rescale_factor must be a positive number"):
        make_module("image", complete_config(made.CLIP, {"rescale_factor": 0}))
    for settings in ({"image_mean": [0.5, 0.5]}, {"image_std": [1, 0, 1]}, {"image_mean": "half"}):
        with pytest.raises(
            ValueError, match=f"{next(iter(settings))} must be a number for each of 3 colours"
        ):
            make_module("image", complete_config(made.CLIP, settings))
    write(tmp_path, "processor_config.json", {"image_processor": [1]})
    with pytest.raises(ValueError, match="'image_processor' is not a JSON object"):
        read_processor(tmp_path)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, (None, None, None)),
        ({"resample": 2, "size": {"height": 8, "width": 8}}, ("stretch", "bilinear", None)),
        ({"resample": 3, "size": {"shortest_edge": 8}, "do_center_crop": True}, ("crop", "bicubic", None)),
        ({"size": {"shortest_edge": 8}}, ("crop", None, None)),
        ({"size": 8, "do_center_crop": True}, ("crop", None, None)),
        ({"size": 8, "resample": 0}, ("stretch", "nearest", None)),
        ({"do_resize": False, "resample": 2}, (None, None, None)),
        ({"size": 8, "do_center_crop": True, "crop_size": 8}, ("crop", None, 1.0)),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            ("crop", None, 0.875),
        ),
        ({"size": 256, "do_center_crop": True, "crop_size": 224, "feature_extractor_type": "DeiTFeatureExtractor"},
         ("stretch", None, 0.875)),
        ({"size": {"height": 10, "width": 10}, "do_center_crop": True, "crop_size": 8}, ("stretch", None, 0.8)),
        ({"size": 224, "crop_pct": 0.875}, ("crop", None, 0.875)),
        ({"size": {"shortest_edge": 224}, "feature_extractor_type": "ConvNextFeatureExtractor"}, ("crop", None, 0.875)),
        ({"size": 384, "crop_pct": 0.875}, ("stretch", None, None)),
    ],
)  # fmt: skip
def test_how_the_processor_resizes(settings, expected):
    assert resize_settings(parse_config(complete_config(made.VIT, settings))) == expected


def both(module, inputs):
    """The tokens' vectors, and what the encoder pools them to."""
    tokens = module(inputs)
    return tokens.values, module.pool(tokens)


def test_a_checkpoint_without_the_layers_of_its_pool_pools_by_the_first_token(tmp_path):
    """As those of classifiers and of masked-language models, in which form most are published."""
    bert = made.write_folder(tmp_path / "bert", {**made.BERT, **WORDS}, {"text": "none"})
    vit = made.write_folder(tmp_path / "vit", made.VIT, {"image": "none"})
    ids = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    for folder, modality, inputs in ((bert, "text", ids), (vit, "image", pixels)):
        found = load(folder, modality)
        assert not json.loads(found.config)["has_pooler"]
        encode = jax.jit(
            lambda params, x, module=found.module: module.apply({"params": params}, x, method=both)
        )
        tokens, pooled = encode(found.params, inputs)
        np.testing.assert_array_equal(pooled, tokens[:, 0])
    # With these layers nothing is different from before.
    whole = made.write_folder(tmp_path / "whole", made.VIT, {"image": "pool"})
    assert "has_pooler" not in load(whole, "image").config and "dense" in load(whole, "image").params


POOLS = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "mean": lambda x: x.mean(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / np.sqrt(len(x)),
    "weightedmean": lambda x: np.average(x, axis=0, weights=np.arange(1, len(x) + 1)),
    "lasttoken": lambda x: x[-1],
}
"""Poolings of sentence-transformers, of the valid tokens ``[L, D]``."""


def sentence_folder(folder, pooling, *more, limits=None):
    """A sentence encoder's folder. ``pooling``: the content of its pooling's configuration; ``more``: its modules after
    the pooling."""
    made.write_folder(folder, {**made.BERT, **WORDS, "num_hidden_layers": 1}, {"text": "none"})
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *((name, f"2_{name}") for name in more)]
    entries = [
        {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{name}"}
        for k, (name, path) in enumerate(modules)
    ]
    write(folder, "modules.json", entries)
    write(folder, "1_Pooling/config.json", {"word_embedding_dimension": 12, **pooling})
    if limits is not None:
        write(folder, "sentence_bert_config.json", limits)
    return folder


def flags(*names):
    known = {"cls": "cls_token", "lasttoken": "lasttoken", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens"}
    return {
        f"pooling_mode_{known.get(name, f'{name}_tokens')}": name in names for name in POOLS
    }  # as published


@pytest.mark.parametrize(
    "pooling, names",
    [(flags(name), (name,)) for name in POOLS]
    + [(flags("mean", "cls"), ("cls", "mean")), ({}, ("mean",)), ({"pooling_mode": "mean"}, ("mean",)),
       ({"pooling_mode": "cls+max"}, ("cls", "max"))],
)  # fmt: skip
def test_a_sentence_encoder_pools_as_its_files_say(tmp_path, pooling, names):
    folder = sentence_folder(tmp_path / "sentence", pooling, "Normalize")
    found = load(folder, "text")
    ids = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    mask = jnp.asarray(np.arange(6)[None] < np.array([[6], [3]]))

    @jax.jit
    def encode(params):
        def both(module):
            tokens = module(ids, mask)
            return tokens.values, module.pool(tokens)

        return found.module.apply({"params": params}, method=both)

    tokens, pooled = encode(found.params)
    valid = [np.asarray(tokens[0], np.float64), np.asarray(tokens[1, :3], np.float64)]
    expected = np.stack([np.concatenate([POOLS[name](x) for name in names]) for x in valid])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_what_sentence_encoders_say_further(tmp_path):
    folder = sentence_folder(
        tmp_path / "a", flags("mean"), limits={"max_seq_length": 9, "do_lower_case": True}
    )
    settings = read_sentence_settings(folder)
    assert settings == {
        "pooling": ["mean"],
        "normalize": False,
        "max_tokens": 9,
        "lower": True,
        "prompt": None,
        "unread": [],
    }
    config = read_pretrained_config("text", folder)
    assert config.max_tokens == 9 and max_text_tokens(config) == 9
    # Layers that this library lacks are not left out in silence, only where another pool is chosen.
    dense = sentence_folder(tmp_path / "b", flags("mean"), "Dense")
    with pytest.raises(ValueError, match="modules.json lists Dense.*--model.text.pool mean"):
        load(dense, "text")
    assert load(dense, "text", "none").module.sentence_pools == ("mean",)


@pytest.mark.parametrize(
    "lacks, pools, remark",
    [
        (("modules.json",), ("max",), "pools by max, as 1_Pooling/config.json says, and not scaled to length 1"),
        (("modules.json", "1_Pooling/config.json"), ("mean",), "pools by mean, as sentence-transformers does where"),
        (("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"), (), "pools by the checkpoint's dense"),
    ],
)  # fmt: skip
def test_what_is_assumed_without_files_of_a_sentence_encoder_is_said(tmp_path, lacks, pools, remark):
    folder = sentence_folder(tmp_path / "a", flags("max"), "Normalize", limits={"max_seq_length": 9})
    made.write_folder(folder, {**made.BERT, **WORDS}, {"text": "pool"})
    for name in lacks:
        (folder / name).unlink()
    config = read_pretrained_config("text", folder)
    assert config.max_tokens == (9 if pools else 40)
    assert load(folder, "text").module.sentence_pools == pools
    assert not load(folder, "text").module.normalize
    (said,) = pretrained_remarks(SimpleRun(model=ContrastiveConfig(text=config)))
    assert said.startswith(f"--model.text hf: {remark}") and "--model.text.pool chooses another pool" in said
    chosen = dataclasses.replace(config, pool="mean")
    assert pretrained_remarks(SimpleRun(model=ContrastiveConfig(text=chosen))) == []


def test_an_exported_sentence_encoder_pools_as_before(tmp_path):
    limits = {"max_seq_length": 9, "do_lower_case": True}
    folder = sentence_folder(tmp_path / "in", flags("cls", "lasttoken"), "Normalize", limits=limits)
    found = load(folder, "text")
    trained = TrainedEncoder("text", found.module, found.params, found.config)
    save_encoder(tmp_path / "out", trained, card="")
    again = load(tmp_path / "out", "text")
    assert (
        again.module == found.module
        and json.loads(again.config)["sentence"] == json.loads(found.config)["sentence"]
    )
    # Without its own pool it is an ordinary encoder.
    alone = make_module("text", found.config)
    save_encoder(tmp_path / "alone", trained._replace(module=alone), card="")
    assert not (tmp_path / "alone" / "modules.json").exists()


@pytest.mark.parametrize("centre", [1.0, 0.8])
@pytest.mark.parametrize("fit, again", [("crop", "crop"), ("stretch", "stretch"), ("pad", None)])
def test_an_exported_image_encoder_says_how_images_were_resized(fit, again, centre):
    """So that another run, and transformers, resize them in the same way; padding has no words in a processor."""
    config = complete_config(made.VIT)
    module = make_module("image", config)
    written = make_processor_config(TrainedEncoder("image", module, {}, config, fit, "bilinear", centre))
    read = resize_settings(parse_config(complete_config(made.VIT, written)))
    assert read[:2] == (again, None if fit == "pad" else "bilinear")
    assert (read.centre or 1.0) == (1.0 if fit == "pad" else centre)


@pytest.mark.parametrize(
    "fit, centre, again", [("crop", 0.875, ("crop", 0.875)), ("stretch", 1.0, (None, None))]
)
def test_an_exported_resnet_says_how_images_were_cropped(fit, centre, again):
    config = complete_config(RESNET)
    trained = TrainedEncoder("image", make_module("image", config), {}, config, fit, "bicubic", centre)
    read = resize_settings(parse_config(complete_config(RESNET, make_processor_config(trained))))
    assert (read.fit, read.centre) == again


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": {"height": 8, "width": 6}},
        {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": 10},
        {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": "all"},
        {"size": 8, "crop_pct": 1.5},
        {"size": 8, "crop_pct": "most"},
    ],
)
def test_a_crop_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match="image processor's crop_(size|pct) must"):
        resize_settings(parse_config(complete_config(made.VIT, settings)))


PROCESSORS = {
    "ViT": dict(size=16),
    "ViT of old": dict(size={"height": 16, "width": 16}),
    "DeiT": dict(size={"height": 20, "width": 20}, crop_size=16),
    "Siglip": dict(size={"height": 16, "width": 16}),
    "CLIP": dict(size={"shortest_edge": 16}, crop_size=16),
    "Bit": dict(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}),  # of DINOv2
    "ConvNext": dict(size={"shortest_edge": 16}),  # of ResNet
    "ConvNext, crop_pct": dict(size=16, crop_pct=0.7),
    "ConvNext, large": dict(size={"shortest_edge": 384}),
}
"""Settings of image processors by the beginning of their names in transformers."""


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(61, 40), (33, 90), (16, 16), (20, 20), (9, 13)])
def test_images_are_resized_as_by_the_processors_of_transformers(tmp_path, name, shape):
    _, transformers = import_transformers()
    make = getattr(transformers, f"{name.partition(',')[0].partition(' ')[0]}ImageProcessorPil")
    processor = make(**PROCESSORS[name], do_rescale=False, do_normalize=False)
    processor.save_pretrained(tmp_path)
    rows, columns = np.indices(shape)[..., None]
    waves = np.sin(rows / 15 + columns / 12 + np.arange(3))
    pixels = (127 * waves + 128).astype(np.uint8)
    expected = np.asarray(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0])
    settings = resize_settings(parse_config(complete_config(made.VIT, read_processor(tmp_path))))
    resize = Resize(settings.fit or "crop", settings.resample or "bicubic", settings.centre or 1.0)
    found = to_square(Image.fromarray(pixels), expected.shape[-1], resize=resize)
    difference = np.abs(found.astype(np.int64) - expected.transpose(1, 2, 0))
    if resize.fit == "crop" and resize.centre == 1:
        # The processor resizes the longer side to a whole number of pixels, this library by the same factor.
        print(difference.mean())
        assert difference.mean() < 25
    else:
        assert difference.max() <= 1


@pytest.mark.parametrize(
    "modality, config, processor",
    [
        ("audio", made.WAV2VEC2, {"sampling_rate": 8000}),
        ("audio", {"model_type": "whisper"}, {"hop_length": 320}),
        ("audio", {"model_type": "whisper"}, {"do_normalize": True}),
    ],
)
def test_audio_that_is_prepared_in_another_way_is_refused(modality, config, processor):
    ((name, value),) = processor.items()
    with pytest.raises(ValueError, match=f"processor says {name} {value}; only"):
        make_module(modality, complete_config(config, processor))
    right = {"sampling_rate": 16000, "hop_length": 160}
    make_module(modality, complete_config(config, right))


def test_recordings_longer_than_whispers_positions_are_refused(tmp_path):
    config = complete_config({"model_type": "whisper", "max_source_positions": 150})
    assert max_audio_seconds(PretrainedEncoderConfig(architecture=config)) == 3.0
    config = complete_config(made.WAV2VEC2)
    assert max_audio_seconds(PretrainedEncoderConfig(architecture=config)) is None


def test_an_encoder_without_a_projection_says_so(tmp_path):
    folder = made.write_folder(tmp_path, {**made.BERT, **WORDS}, {"text": "pool"})
    with pytest.raises(
        ValueError, match="bert was not trained in an embedding space.*leave --model.head own out"
    ):
        load(folder, "text", "project")


def test_what_a_checkpoint_decides_is_said(tmp_path):
    """Where users would not expect it: on screen and in the report."""
    sentence = sentence_folder(tmp_path / "a", flags("mean"), "Normalize", limits={"do_lower_case": True})
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write(sentence, "config_sentence_transformers.json", prompts)
    text = read_pretrained_config("text", sentence)
    vit = made.write_folder(tmp_path / "b", made.VIT, {"image": "none"})
    image = read_pretrained_config("image", vit)
    config = SimpleRun(model=ContrastiveConfig(text=text, image=image))
    pooled, lower, prompt, first = pretrained_remarks(config)
    assert "was trained with 'query: ' before each text" in prompt
    assert pooled.startswith(
        "--model.text hf: pools by mean, scaled to length 1, as its sentence-transformers files"
    )
    assert lower.startswith("--model.text hf: was trained on texts in lower case")
    assert first.startswith(
        "--model.image hf: has no layers for its pool in the checkpoint, so that it is the first"
    )
    chosen = dataclasses.replace(
        config.model, text=TextTransformerConfig(), image=dataclasses.replace(image, pool="cls")
    )
    assert pretrained_remarks(SimpleRun(model=chosen)) == []
    write(vit, "preprocessor_config.json", {"size": {"height": 16, "width": 16}, "resample": 2})
    *_, resized = pretrained_remarks(
        SimpleRun(model=ContrastiveConfig(image=read_pretrained_config("image", vit)))
    )
    assert "resizes images by stretch and bilinear" in resized
    shown, bad_examples = [], BadExamples()
    bad_examples.announce = shown.append
    for _ in range(2):
        bad_examples.remark(first)
    assert shown == [first] == bad_examples.remarks and bad_examples.summary() == first


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("modules.json", [{"type": "x.Pooling", "path": "../elsewhere"}], "outside of"),
        ("modules.json", [{"type": "x.Pooling", "path": "/etc"}], "outside of"),
        ("modules.json", {"a": 1}, "no list of modules"),
        ("modules.json", [{"path": ""}], "no list of modules"),
        ("1_Pooling/config.json", {"pooling_mode": "sum"}, "chooses the pooling sum; known are cls"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "chooses the pooling of nothing"),
    ],
)
def test_damaged_files_of_a_sentence_encoder_are_refused(tmp_path, name, content, message):
    folder = sentence_folder(tmp_path / "sentence", flags("mean"))
    write(folder, name, content)
    with pytest.raises(ValueError, match=message):
        read_sentence_settings(folder)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=True) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
"""Values that JSON can hold."""
PLACES = [
    ("modules.json", None), ("1_Pooling/config.json", "pooling_mode"), ("1_Pooling/config.json", None),
    ("sentence_bert_config.json", "max_seq_length"), ("config_sentence_transformers.json", "prompts"),
    ("config_sentence_transformers.json", "default_prompt_name"),
]  # fmt: skip


@hypothesis.given(ANYTHING, st.sampled_from(PLACES))
def test_whatever_a_sentence_encoders_files_hold_is_read_or_refused(tmp_path_factory, content, place):
    folder = tmp_path_factory.mktemp("sentence")
    modules = [{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}]
    for name, whole in (
        ("modules.json", modules),
        ("1_Pooling/config.json", {}),
        ("sentence_bert_config.json", {}),
    ):
        write(folder, name, whole)
    name, field = place
    write(folder, name, content if field is None else {"prompts": {"a": "b"}, field: content})
    try:
        settings = read_sentence_settings(folder)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert all(pool in POOLS_HERE for pool in settings["pooling"])
        assert settings["max_tokens"] is None or settings["max_tokens"] > 0


@hypothesis.given(
    ANYTHING,
    st.sampled_from(
        [
            "image_mean",
            "image_std",
            "rescale_factor",
            "do_rescale",
            "do_normalize",
            "resample",
            "size",
            "crop_pct",
        ]
    ),
)
def test_whatever_an_image_processor_says_is_read_or_refused(content, name):
    config = SimpleNamespace(processor=parse_config(json.dumps({name: content})))
    try:
        mean, deviation = pixel_scale(config, CLIP)
        resize_settings(config)
    except ValueError as error:
        assert name in str(error)
    else:
        assert np.isfinite(mean + deviation).all() and min(deviation) > 0


def test_the_most_tokens_of_each_architecture(tmp_path):
    """Its positions; RoBERTa's begin after that of padding."""
    for model_type, expected in (("bert", 40), ("roberta", 38)):
        config = {**made.BERT, **WORDS, "model_type": model_type, "pad_token_id": 1}
        folder = made.write_folder(tmp_path / model_type, config, {"text": "none"})
        assert read_pretrained_config("text", folder).max_tokens == expected
    gpt2 = made.write_folder(tmp_path / "gpt2", {**made.GPT2, **WORDS}, {"decoder": "none"})
    assert read_pretrained_config("decoder", gpt2).max_tokens == 60
    assert (
        read_pretrained_config(
            "image", made.write_folder(tmp_path / "vit", made.VIT, {"image": "none"})
        ).max_tokens
        is None
    )
