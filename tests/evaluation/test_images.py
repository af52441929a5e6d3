"""Images generated for whole data sets, their scores by a judge, and how reports show them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.models.gan.test_method import CONFIG as GAN_CONFIG
from tests.models.gan.test_method import WORDS_ALONE
from tests.models.test_seq2seq import COCA
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.text import TokenizeTransform, train_tokenizer
from xmodal_jax.data.views import Subset
from xmodal_jax.evaluation import image_judge as judging
from xmodal_jax.evaluation import images as drawing
from xmodal_jax.evaluation.text import ReferenceTexts, TextGenerator
from xmodal_jax.inference.translate import write_outputs
from xmodal_jax.inference.translators import load_translator
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.models.gan import ClassCondition, make_gan
from xmodal_jax.models.seq2seq import ContrastiveObjective, GreedySearchConfig, make_seq2seq
from xmodal_jax.models.towers import Augmentation
from xmodal_jax.nets.encoders import DCGANEncoderConfig, MLPEncoderConfig, TextTransformerConfig
from xmodal_jax.nets.gan import MLPGeneratorConfig
from xmodal_jax.preprocess.image import to_float
from xmodal_jax.report import images as panels
from xmodal_jax.report.page import Report
from xmodal_jax.train.checkpoint import Checkpoints, describe
from xmodal_jax.train.run import to_json
from xmodal_jax.transfer.frozen import LoadedCaptioner, same_tokens, text_encoder_of_run
from xmodal_jax.types import GAN

N, SHAPE = 130, (16, 16, 3)


def drawn_at_random(init, *args):
    """Parameters of what ``init`` makes, without compiling it."""
    rng = np.random.default_rng(0)
    of = lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32)
    return jax.tree.map(of, jax.eval_shape(init, *args))


def stub(predict):
    """A GAN that only draws."""
    return GAN(None, None, None, None, None, predict, 1)


def test_a_trained_run_draws_the_words_it_is_given(tmp_path):
    """The average of the generator, by the run's own tokenizer; and a run that knows no words is refused."""
    config = dataclasses.replace(
        GAN_CONFIG, condition=WORDS_ALONE, discriminator=MLPEncoderConfig(width=8),
        generator=MLPGeneratorConfig(noise=5, width=8),
    )  # fmt: skip
    tokenizer = train_tokenizer(["a red star", "a blue ring"], "word")
    sizes = dict(vocab_size=tokenizer.vocab_size, length=6, classes=0)
    gan = make_gan(config, shape=(6, 7, 3), **sizes)
    params, variables = drawn_at_random(gan.init, jax.random.key(0), {})
    average = jax.tree.map(lambda x: 0.5 * x, params["generator"])
    meta = {
        "config": {"model": to_json(config)},
        "source": "text",
        "target": "image",
        "shape": (6, 7, 3),
        **sizes,
    }
    kept = Checkpoints(tmp_path / "run" / "checkpoints")
    state = {"params": params, "ema": average, "variables": variables}
    kept.save(1, state, meta | {"tokenizer": tokenizer.files(), "seeds": [0]})
    kept.close()
    loaded = load_translator(tmp_path / "run", noise_seed=3)
    assert (loaded.source, loaded.target, loaded.shape) == ("text", "image", (6, 7, 3))
    words = ["a red star", "a red star", "a blue ring"]
    generator = drawing.ImageGenerator(gan, TokenizeTransform(tokenizer, 6), noise=5)
    asked = generator.conditions(ArraySource({"caption": np.array(words, object)}))
    wanted = generator({"generator": average, "variables": variables}, asked, generator.sample_noise(3, 3))
    found = loaded.apply(words)
    np.testing.assert_array_equal(np.stack(found), wanted)
    assert (found[0] != found[1]).any()
    paths = write_outputs(tmp_path, ["one", "two"], found[:2], sample_rate=0)
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), found[1])
    kept = Checkpoints(tmp_path / "other" / "checkpoints")
    of_classes = dataclasses.replace(config, condition=ClassCondition())
    kept.save(1, state, meta | {"config": {"model": to_json(of_classes)}, "classes": 2, "seeds": [0]})
    kept.close()
    with pytest.raises(ValueError, match="text_to_image_gan.py with captions"):
        load_translator(tmp_path / "other")


def test_the_text_encoder_of_a_contrastive_run_reads_for_both_players(tmp_path):
    model = ContrastiveConfig(
        text=TextTransformerConfig(width=8, depth=1, heads=2, pool="attention"),
        image=MLPEncoderConfig(width=8, depth=1), embed_dim=4,
    )  # fmt: skip
    tokenizer = train_tokenizer(["a red star", "a blue ring"], "word")
    batch = {"text": np.ones((2, 6), np.int32), "text_mask": np.ones((2, 6), bool)}
    batch["image"] = np.zeros((2, 6, 7, 3), np.uint8)
    aligned = make_contrastive(model, ("text", "image"), vocab_size=tokenizer.vocab_size)
    params = drawn_at_random(aligned.init, jax.random.key(0), batch)
    meta = {"config": {"model": to_json(model)}, "tokenizer": tokenizer.files(), "seeds": [0]}
    kept = Checkpoints(tmp_path / "aligned" / "checkpoints")
    kept.save(1, {"params": params}, meta | {"modalities": ["text", "image"], "max_length": 6})
    kept.close()
    reader = text_encoder_of_run(tmp_path / "aligned")
    tokenize = same_tokens(None, reader)
    # Captions are cleaned as those that it was trained on.
    lower = same_tokens(None, reader._replace(cleanup="lower"))
    capitals, small = ({"caption": np.array([text], object)} for text in ("A  RED", "a red"))
    np.testing.assert_array_equal(lower(capitals)["text"], tokenize(small)["text"])
    assert reader.config == model.text and tokenize.max_length == 6 and tokenize.tokenizer is reader.tokenizer
    config = dataclasses.replace(
        GAN_CONFIG, condition=dataclasses.replace(WORDS_ALONE, text=reader.config),
        discriminator=MLPEncoderConfig(width=8),
        generator=MLPGeneratorConfig(noise=5, width=8),
    )  # fmt: skip
    sizes = dict(shape=(6, 7, 3), vocab_size=tokenizer.vocab_size, length=6)
    gan = make_gan(config, text=reader.params, **sizes)
    players, variables = drawn_at_random(gan.init, jax.random.key(0), {})
    assert "text" not in players["generator"] and "text" not in variables
    known = {"generator": {**players["generator"], "text": params["text"]}, "variables": {}}
    words = ["a red star", "a blue ring"]
    asked = drawing.ImageGenerator(gan, tokenize, noise=5).conditions(
        ArraySource({"caption": np.array(words, object)})
    )
    draw = lambda params: drawing.ImageGenerator(gan, None, noise=5)(
        params, asked, np.ones((2, 5), np.float32)
    )
    frozen = {"text": reader.params}
    found = draw({"generator": players["generator"], "variables": variables, "frozen": frozen})
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found, draw(known))
    kept = Checkpoints(tmp_path / "gan" / "checkpoints")
    facts = {"config": {"model": to_json(config)}, "source": "text", "target": "image", "classes": 0, **sizes}
    kept.save_frozen(frozen)
    facts["frozen"] = describe(frozen)
    kept.save(1, {"params": players, "variables": variables}, meta | facts)
    kept.close()
    assert (load_translator(tmp_path / "gan", noise_seed=3).apply(words)[0] != 0).any()
    damaged = Checkpoints(tmp_path / "gan" / "checkpoints")
    damaged.save_frozen(jax.tree.map(lambda x: x + 1.0, frozen))
    damaged.close()
    with pytest.raises(ValueError, match="other bits than were written"):
        load_translator(tmp_path / "gan")
    kept.save_frozen(frozen)

    other = LoadedCaptioner(None, TokenizeTransform(tokenizer, 7))
    with pytest.raises(ValueError, match="--read-with"):
        same_tokens(other, reader)
    with pytest.raises(ValueError, match="contrastive.py with text"):
        text_encoder_of_run(tmp_path / "gan")


# -- generated images ---------------------------------------------------------------------------------------


def test_images_are_the_gans_predictions_whatever_the_size_of_its_batches():
    config = dataclasses.replace(
        GAN_CONFIG, condition=ClassCondition(auxiliary_weight=0.0), discriminator=MLPEncoderConfig(width=8),
        generator=MLPGeneratorConfig(noise=5, width=8),
    )  # fmt: skip
    gan, n = make_gan(config, shape=(6, 7, 1), classes=3), 11
    params, variables = drawn_at_random(gan.init, jax.random.key(0), {})
    params = {"generator": params["generator"], "variables": variables}
    source = ArraySource(
        {"image": np.zeros((n, 6, 7, 1), np.uint8), "label": np.arange(n, dtype=np.int32) % 3}
    )
    generator = drawing.ImageGenerator(gan, None, noise=5, batch_size=4)
    asked, noise = generator.conditions(source), generator.sample_noise(n, 7)
    assert list(asked) == ["index", "label"] and noise.shape == (n, 5) and noise.dtype == np.float32
    np.testing.assert_array_equal(noise, generator.sample_noise(n, 7))
    drawn = generator(params, asked, noise)
    assert drawn.dtype == np.uint8 and drawn.shape == (n, 6, 7, 1)
    floats = np.asarray(
        gan.predict(params, {"label": jnp.asarray(asked["label"]), "noise": jnp.asarray(noise)})
    )
    assert np.ptp(floats) > 0.5
    # Half a step of the pixels' scale, but for what is a tie up to rounding.
    assert np.abs((floats.astype(np.float64) + 1) * 127.5 - drawn).max() < 0.5 + 1e-3
    other = drawing.ImageGenerator(gan, None, noise=5)(params, asked, noise)
    np.testing.assert_array_equal(other, drawn)


def test_pixels_are_rounded_and_read_back():
    """-1 is 0, 1 is 255, beyond is cut; what `to_float` makes of a pixel comes back as the pixel."""
    every = np.arange(256, dtype=np.uint8)
    values = np.concatenate(
        [np.asarray(to_float(jnp.asarray(every))), [-1.3, 1.3, -1 + 0.4 / 127.5, 0.6 / 127.5]]
    )
    gan = stub(lambda params, batch: batch["noise"][:, None, :, None])
    drawn = drawing.ImageGenerator(gan, None, noise=len(values))({}, {}, values.astype(np.float32)[None])
    np.testing.assert_array_equal(drawn[0, 0, :, 0], [*every, 0, 255, 0, 128])


def test_captions_reach_the_gan_as_tokens():
    captions = np.array(["red", "green red", "blue"], object)
    tokenizer = train_tokenizer(captions.tolist(), "word")
    generator = drawing.ImageGenerator(stub(None), TokenizeTransform(tokenizer, 4), noise=1)
    source = ArraySource({"image": np.zeros((3, 2, 2, 3), np.uint8), "caption": captions})
    asked = generator.conditions(source)
    assert set(asked) == {"index", "text", "text_mask"} and asked["text"].shape == (3, 4)
    assert tokenizer.decode_batch(asked["text"]) == captions.tolist()


# -- the judge ----------------------------------------------------------------------------------------


def shapes(split):
    return SpokenShapes(split, size=N, modalities=("text", "image"), image_size=16)


class Reader(judging.Judge):
    """Knows the split's pictures and reads their captions off them; others say nothing to it."""

    def __init__(self, references, images, has_embeddings=True):
        rng = np.random.default_rng(0)
        self.__dict__.update(
            has_embeddings=has_embeddings,
            known={image.tobytes(): text for image, text in zip(images, references.texts, strict=True)},
            eyes=rng.normal(size=(np.prod(SHAPE), 8)) / np.sqrt(np.prod(SHAPE)),
            space={text: rng.normal(size=16) for text in references.texts},
        )

    def captions(self, images):
        return [self.known.get(image.tobytes(), "nothing that I know") for image in images]

    def features(self, images):
        return (images.reshape(len(images), -1) / 255.0 - 0.5) @ self.eyes

    def embeddings(self, images, captions):
        unit = lambda rows: np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
        nowhere = np.ones(16)
        seen = unit([self.space.get(text, nowhere) for text in self.captions(images)])
        return seen, unit([self.space[text] for text in captions])


@pytest.fixture(scope="module")
def gallery():
    references = ReferenceTexts(shapes("test"))
    images = references.source.batch(np.arange(N))["image"]
    judge = Reader(references, images)
    train = shapes("train").batch(np.arange(N))["image"]
    return judge, judging.load_real_images(references, judge), judge.features(train), train


def test_few_captions_are_chosen_among_and_their_number_said(gallery):
    judge, _, train, _ = gallery
    few = ReferenceTexts(Subset(shapes("test"), np.arange(7)))
    images = few.source.batch(np.arange(7))["image"]
    found = judging.judge_scores(judge, images, judging.load_real_images(few, judge), train, "")
    distinct = len(set(map(str, few.meanings)))
    assert found[f"r_precision_of_{distinct}"] == 1.0 and "r_precision" not in found


def test_captions_of_one_picture_or_of_one_meaning_are_one_candidate(gallery):
    """Seven pictures with three captions each; two of them share a caption."""
    judge, _, train, _ = gallery
    texts = [f"picture {k}, {way}" for k in range(7) for way in "abc"]
    texts[3] = texts[0]
    images = np.repeat(shapes("test").batch(np.arange(7))["image"], 3, axis=0)
    source = ArraySource({"image": images, "caption": np.array(texts, object)})
    groups = np.repeat(np.arange(7), 3)
    source.groups = lambda indices=None: groups if indices is None else groups[indices]
    references = ReferenceTexts(source)
    ids = judging._caption_groups(references).tolist()
    assert [ids.index(i) for i in ids] == [0] * 6 + [6 + k // 3 * 3 for k in range(15)]
    real = judging.load_real_images(references, judge)
    assert len(real.images) == len(real.features) == 7
    judge.space |= {text: np.random.default_rng(1).normal(size=16) for text in texts}
    found = judging.judge_scores(judge, images, real, train, "")
    assert "r_precision_of_6" in found and judging.r_precision_chance("test/r_precision_of_6") == 1 / 6
    assert judging.r_precision_chance("test/r_precision") == 0.01


def test_a_perfect_generator_scores_above_one_whose_images_are_all_the_same(gallery):
    judge, real, train, _ = gallery
    np.testing.assert_array_equal(real.features, judge.features(real.images))
    best = judging.judge_scores(judge, real.images, real, train, "test/")
    same = judging.judge_scores(judge, np.repeat(real.images[:1], N, axis=0), real, train, "test/")
    assert all(name.startswith("test/") and isinstance(value, float) for name, value in best.items())
    for name in ("factor_accuracy", "exact_accuracy", "sentence_share", "colour_accuracy", "number_accuracy"):
        assert best[f"test/{name}"] == 1.0
    assert same["test/factor_accuracy"] < 0.6 and same["test/exact_accuracy"] < 0.1
    assert best["test/r_precision"] == 1.0 and same["test/r_precision"] < 0.1
    assert best["test/judge_kernel_distance_real"] == same["test/judge_kernel_distance_real"]
    far, near = (
        same["test/judge_kernel_distance"] - same["test/judge_kernel_distance_real"],
        best["test/judge_kernel_distance"] - best["test/judge_kernel_distance_real"],
    )
    assert far > 0 and abs(near) < 0.1 * far  # the split meets itself: a little below 0
    assert best["test/judge_frechet_distance"] == pytest.approx(
        0.0, abs=1e-6 * same["test/judge_frechet_distance"]
    )
    assert best["test/precision"] == best["test/recall"] == best["test/coverage"] == 1.0
    assert same["test/recall"] < 0.05 and same["test/coverage"] < 0.2
    assert best["test/nearest_train"] == 1.0


def test_copies_of_training_images_are_found_out(gallery):
    judge, real, train, pictures = gallery
    copied = judging.judge_scores(judge, pictures, real, train, "")
    assert copied["nearest_train"] == 0.0 and copied["factor_accuracy"] < 0.1
    # As many training pictures, in the same subsets.
    assert copied["judge_kernel_distance"] == copied["judge_kernel_distance_real"]


def test_a_judge_that_does_not_compare_gives_no_precision(gallery):
    judge, real, train, _ = gallery
    plain = Reader(real.texts, real.images, has_embeddings=False)
    found = judging.judge_scores(plain, real.images, real, train, "")
    assert "r_precision" not in found and found["factor_accuracy"] == 1.0


TEXTS = [f"{a} {b}" for a in "klmnpqrstvwxy" for b in "abcdefghij"]


def save_run(folder):
    """An untrained captioning run: its model, method, tokenizer and parameters."""
    tokenizer = train_tokenizer(TEXTS, "word")
    image = DCGANEncoderConfig(width=8, norm="none")
    model = dataclasses.replace(
        COCA, image=image, augment=Augmentation(), contrastive=ContrastiveObjective(embed_dim=16)
    )
    method = make_seq2seq(model, "image", vocab_size=tokenizer.vocab_size, length=4)
    batch = {"image": np.zeros((1, 8, 8, 3), np.uint8), "text": np.ones((1, 4), np.int32)}
    params = drawn_at_random(method.init, jax.random.key(0), batch)
    meta = {"config": to_json({"model": model}), "source": "image", "target": "text", "shape": (8, 8, 3)}
    meta |= {"length": 4, "tokenizer": tokenizer.files(), "step": 1}
    kept = Checkpoints(folder / "checkpoints")
    kept.save(1, {"params": params}, meta)
    kept.close()
    return model, method, tokenizer, params


def test_a_judge_is_a_captioning_run(tmp_path):
    model, method, tokenizer, params = save_run(tmp_path)
    images, train, drawn = np.random.default_rng(0).integers(0, 256, (3, N, 8, 8, 3)).astype(np.uint8)
    references = ReferenceTexts(ArraySource({"image": images, "caption": np.array(TEXTS, object)}))
    panel = judging.JudgeReport(
        judging.load_judge(tmp_path), ArraySource({"image": train}), {"test": references}
    )
    judge = panel.judge
    assert judge.has_embeddings and judge.shape == (8, 8, 3)
    decodings = {"greedy": GreedySearchConfig()}
    writer = TextGenerator(model, "image", tokenizer, length=4, decodings=decodings)
    read = judge.captions(images)
    assert len(set(read)) > 1 and read == writer(params, ArraySource({"image": images}), "greedy")
    features = judge.features(images)
    assert features.shape == (N, 8)
    np.testing.assert_allclose(judge.features(images[::-1])[::-1], features, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="(4, 4, 3).*a captioning run on the same data"):
        judge.features(images[:, ::2, ::2])
    assert np.abs(features[0] - features[1]).max() > 1e-3
    seen, read = judge.embeddings(images, TEXTS)
    batch = TokenizeTransform(tokenizer, 4)({"caption": np.array(TEXTS, object)})
    batch = {**batch, "image": images, "index": np.arange(N, dtype=np.int32)}
    wanted = jax.jit(method.predict)(params, {k: v for k, v in batch.items() if k != "caption"}).embeddings
    np.testing.assert_allclose(seen, wanted["image"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(read, wanted["text"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm([seen, read], axis=2), 1.0, rtol=1e-5)
    real = judging.load_real_images(references, judge)
    one = judging.judge_scores(judge, drawn, real, judge.features(train), "test/")
    assert one == panel.scores({"test": drawn}) and "test/r_precision" in one
    assert panel.captions(drawn) == judge.captions(drawn)


def test_without_a_judge_nothing_is_said():
    references = ReferenceTexts(ArraySource({"caption": np.array(["red"], object)}))
    panel, drawn = (
        judging.JudgeReport(None, references.source, {"test": references}),
        np.zeros((1, 2, 2, 3), np.uint8),
    )
    assert panel.scores({"test": drawn}) == {} and panel.captions(drawn) is None


@pytest.mark.parametrize(
    "facts", [{"source": "text", "target": "audio"}, {"source": "video", "target": "text"}, {}]
)
def test_other_runs_do_not_judge(tmp_path, facts):
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(1, {"params": {"w": jnp.ones(2)}}, {"config": {}, "step": 1, **facts})
    kept.close()
    with pytest.raises(ValueError, match="cannot judge images: give a run of captioning.py"):
        judging.Judge(tmp_path)


# -- reports --------------------------------------------------------------------------------------------


def painter(channels=3):
    """Draws the noise's first numbers as evenly coloured pictures, as bright as its parameter says."""

    def predict(params, batch):
        colours = jnp.tanh(params * batch["noise"][:, None, None, :channels])
        return jnp.broadcast_to(colours, (len(colours), 4, 5, channels))

    return drawing.ImageGenerator(stub(predict), None, noise=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_history_writes_its_samples_as_files(tmp_path, channels):
    asked = {"label": np.zeros(11, np.int32)}
    history = panels.SampleHistory(tmp_path / "samples", painter(channels), asked, seed=3)
    for brightness in (0.5, 1.0):
        history.add(jnp.float32(brightness))
    assert [p.name for p in sorted((tmp_path / "samples").iterdir())] == ["001.png", "002.png"]
    noise = np.random.default_rng(3).standard_normal((11, 3), np.float32)
    for number, (brightness, page) in enumerate(zip((0.5, 1.0), history.samples, strict=True), start=1):
        np.testing.assert_array_equal(page, painter(channels)(jnp.float32(brightness), asked, noise))
        with Image.open(tmp_path / "samples" / f"{number:03d}.png") as file:
            decoded = np.asarray(file).reshape(8, 40, channels)
        for k, picture in enumerate(page):
            row, column = divmod(k, 8)
            np.testing.assert_array_equal(
                decoded[4 * row : 4 * row + 4, 5 * column : 5 * column + 5], picture
            )
    assert (history.samples[0] != history.samples[1]).any()


def test_a_history_is_of_the_first_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(panels, "HISTORY_CAPTIONS", 3)
    history = panels.SampleHistory(tmp_path, painter(), {"label": np.zeros(11, np.int32)}, seed=3)
    history.add(jnp.float32(1.0))
    assert len(history.samples[0]) == 3


def test_written_pictures_are_a_data_set(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3)).astype(np.uint8)
    captions = ["a red disc", "ein grünes Dreieck", 'the "blue" one']
    panels.write_images(tmp_path / "drawn", images, captions)
    batch = FolderSource(tmp_path / "drawn", "all", progress=False).batch(np.arange(3))
    np.testing.assert_array_equal(batch["image"], images)
    assert batch["caption"].tolist() == captions


def test_a_grid_has_real_pictures_above_the_drawn_ones(tmp_path):
    real = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    panels.write_comparison(tmp_path / "grid.png", real, 100 + real, columns=3)
    found = np.asarray(Image.open(tmp_path / "grid.png"))
    assert found.shape == (8, 9, 3)
    np.testing.assert_array_equal(
        found[::2, ::3, 0], [[0, 1, 2], [100, 101, 102], [3, 4, 5], [103, 104, 105]]
    )
    panels.write_comparison(tmp_path / "short.png", real[:2], real[:2])
    assert np.asarray(Image.open(tmp_path / "short.png")).shape == (4, 6, 3)


def test_a_sheet_is_read_row_by_row():
    images = np.arange(1, 8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    found = panels.tile_images(images, columns=3)[..., 0]
    np.testing.assert_array_equal(found[::2, ::3], [[1, 2, 3], [4, 5, 6], [7, 0, 0]])
    np.testing.assert_array_equal(found, np.kron(found[::2, ::3], np.ones((2, 3), np.uint8)))


def test_slerp_goes_along_the_great_circle():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    path = panels.slerp(a, b, 7)
    assert path.dtype == np.float32
    np.testing.assert_allclose(path[[0, -1]], [a, b], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), 1.0, rtol=1e-6)
    whole = np.arccos(a @ b)
    np.testing.assert_allclose(np.arccos((path[:-1] * path[1:]).sum(axis=1)), whole / 6, rtol=1e-4)
    # The whole turn lies in the plane of a and b.
    assert np.linalg.svd(path, compute_uv=False)[2] < 1e-5
    longer = panels.slerp(2 * a, 3 * b, 5)
    np.testing.assert_allclose(longer[[0, -1]], [2 * a, 3 * b], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(panels.slerp(a, a, 3), np.tile(a, (3, 1)), atol=1e-6)


def test_the_report_shows_every_picture(tmp_path):
    report, generator, asked = Report("Drawn"), painter(), {"label": np.arange(5, dtype=np.int32)}
    captions, params = ["one", "two", "three", "four", "five"], jnp.float32(1.0)
    history = panels.SampleHistory(tmp_path, generator, asked, seed=0)
    panels.add_history(report, history, captions)
    assert report.html().count("<picture") == report.html().count("data:image/png") == 0
    for _ in range(3):
        history.add(params)
    count = lambda: report.html().count("data:image/png")
    panels.add_history(report, history, captions)
    assert count() == 5 * 3
    real = history.samples[0]
    panels.add_samples(report, "Pairs", captions, real, [real, real], ["a", "b", "c", "d", "e"], 4)
    panels.add_samples(report, "All there are", captions, real, [real], None)
    assert count() == 15 + 4 * 3 + 5 * 2
    panels.add_interpolations(report, generator, params, asked, captions, seed=0)
    assert count() == 37 + 4 * 8 + 4 * 8 + 4 * 2 * len(panels.TRUNCATIONS)


def test_the_first_stage_of_a_gan_is_enlarged_and_shown_beside_the_second(tmp_path):
    """Of the same noise and conditions; a GAN with one stage has none."""

    def draw(size):
        def predict(params, batch):
            shade = params + 0.1 * batch["label"].astype(jnp.float32) + 0.01 * batch["noise"][:, 0]
            return jnp.broadcast_to(shade[:, None, None, None], (len(shade), size, size, 3))

        return predict

    source = ArraySource(
        {"image": np.zeros((3, 8, 8, 3), np.uint8), "label": np.array([0, 3, 1], np.int32)},
        class_names=tuple("abcd"),
    )
    splits = {"test": ReferenceTexts(source)}
    make = lambda gan: drawing.SplitImageGenerator(drawing.ImageGenerator(gan, None, noise=2), splits, seed=4)
    plain, both = make(stub(draw(8))), make(stub(draw(8))._replace(predict_first_stage=draw(2)))
    params = jnp.float32(-0.5)
    assert plain.first_stage(params, ["test"]) == {}
    first = both.first_stage(params, ["test"])["test"]
    np.testing.assert_array_equal(first, both(params, "test"))  # of one shade: enlarged, it is the same
    assert first.shape == (3, 8, 8, 3) and len(np.unique(first[:, 0, 0, 0])) == 3
    report = Report("title", "subtitle")
    panels.add_stages(report, list("adb"), source.arrays["image"], first, both(params, "test"))
    panels.add_stages(report, list("adb"), source.arrays["image"], None, first)
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<th>first stage</th>") == 1


def test_what_a_seed_has_not_learned_is_said(gallery, capsys):
    """Against what the judge reads in real images; an accuracy that is as low in real images is no failure."""
    judge, real, _, _ = gallery
    judge = judging.JudgeReport(judge, shapes("train"), {"test": real.texts})
    same = {"test": np.repeat(real.images[:1], N, axis=0)}
    scores = judge.scores(same, real=True)
    assert scores["real_test/relation_accuracy"] == 1.0 > scores["test/relation_accuracy"]
    assert not any(name.startswith("real_") for name in judge.scores(same))
    metrics = {
        "test/relation_accuracy": [0.9, 0.3], "real_test/relation_accuracy": [1.0, 1.0],
        "test/shape_accuracy": [0.5, 0.5], "real_test/shape_accuracy": [0.55, 0.55],
        "test/exact_accuracy": [0.1, 0.1], "real_test/exact_accuracy": [0.9, 0.9],
    }  # fmt: skip
    assert panels.describe_failures({}, [0]) == []
    (sentence,) = panels.describe_failures(metrics, [5, 6])
    assert "Seed 6" in sentence and "relation 0.30 (real images: 1.00)" in sentence
    assert "shape" not in sentence and "exact" not in sentence
    report = Report("")
    panels.add_scores(report, metrics, seeds=[5, 6])
    assert sentence in capsys.readouterr().out and "What was not learned" in report.html()
