"""Text from pictures and sounds: losses, gradients, generation and learning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_contrastive import CONFIG as TOWERS
from tests.models.test_contrastive import make_batch as raw_batch
from tests.models.test_contrastive import on_device
from tests.support import LAYOUTS, assert_device_invariant, assert_resumes, random_params
from xmodal_jax.models.seq2seq import (
    AttentionObjective,
    BeamSearchConfig,
    ContrastiveObjective,
    CTCObjective,
    GreedySearchConfig,
    JointObjective,
    SamplingConfig,
    Seq2SeqConfig,
    make_captioner,
    make_cross_attention,
    make_feature_extractor,
    make_seq2seq,
    make_text_generator,
)
from xmodal_jax.models.towers import Augmentation
from xmodal_jax.nets.encoders import DCGANEncoderConfig, TextDecoderConfig, build_encoder
from xmodal_jax.preprocess.image import AugmentConfig, to_float
from xmodal_jax.train.optim import Optimizer

BEGIN, END, VOCAB, LENGTH = 1, 2, 19, 7
CONFIG = Seq2SeqConfig(
    objective=JointObjective(),
    decoder=TextDecoderConfig(width=16, depth=1, heads=2, dropout=0.2),
    **{f: getattr(TOWERS, f) for f in ("image", "audio", "video", "features", "augment")},
)
CONFIG = dataclasses.replace(CONFIG, audio=dataclasses.replace(CONFIG.audio, downsample=2))
SIZES = dict(vocab_size=VOCAB, length=LENGTH)
TOKENS = dict(begin=BEGIN, end=END)
PLAIN = AugmentConfig(translate=0, flip=0.0)


def make_batch(source="audio", n=16):
    batch = raw_batch(n, modalities=("text", source))
    rng, ids = np.random.default_rng(3), np.zeros((n, LENGTH), np.int32)
    for row in ids:
        count = rng.integers(1, 5)
        row[: count + 2] = [BEGIN, *rng.integers(4, VOCAB, count), END]
    return {**batch, "text": ids, "text_mask": ids != 0}


# Pictures: below, with the contrastive loss.
@pytest.mark.parametrize(
    ("source", "layouts"),
    [
        ("audio", [("sharded", 4, 2)]),
        *(pytest.param(s, LAYOUTS, marks=pytest.mark.slow) for s in ("audio", "image")),
    ],
)
def test_the_devices_do_not_change_the_result(source, layouts):
    """With dropout, augmentation, and missing texts and sources."""
    config = CONFIG if source == "audio" else dataclasses.replace(CONFIG, objective=AttentionObjective())
    method = make_seq2seq(config, source, **SIZES)
    assert_device_invariant(method, make_batch(source), layouts=layouts)


def test_a_stopped_run_ends_bit_identical(tmp_path):
    arrays = {k: v for k, v in make_batch(n=24).items() if k not in ("index", "present")}
    assert_resumes(
        make_seq2seq(CONFIG, "audio", **SIZES), arrays, tmp_path, optimizer=Optimizer(name="adamw")
    )


def test_what_is_missing_or_padded_has_no_influence_and_no_gradient():
    method = make_seq2seq(CONFIG, "audio", **SIZES)
    batch = make_batch()
    batch["present"] = {"audio": np.arange(16) != 3, "text": np.arange(16) != 5}
    params = random_params(method.init, jax.random.key(0), batch)
    learn = jax.jit(jax.value_and_grad(lambda p, b: method.loss(p, b, jax.random.key(1))[0]))
    loss = lambda p, b: learn(p, b)[0]
    usual = loss(params, on_device(batch))
    for field, row in (("audio", 3), ("text", 3), ("audio", 5), ("text", 5)):
        changed = {**batch, field: batch[field].copy()}
        changed[field][row] = changed[field][row][::-1] // 2
        assert loss(params, on_device(changed)) == usual, (field, row)
    padded = {**batch, "text": np.where(batch["text_mask"], batch["text"], 7)}
    assert loss(params, on_device(padded)) == usual
    nobody = {**batch, "present": {"audio": np.zeros(16, bool), "text": np.ones(16, bool)}}
    value, grads = learn(params, on_device(nobody))
    assert value == 0 and not any(np.any(g) for g in jax.tree.leaves(jax.device_get(grads)))


@pytest.fixture(scope="module")
def trained():
    """A model moved off its start, so that its texts differ; the end token is one that some texts hold."""
    config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, depth=2))
    method = make_seq2seq(config, "audio", **SIZES)
    batch = on_device({k: v for k, v in make_batch().items() if k != "present"})
    params = jax.tree.map(lambda x: 3 * x, random_params(method.init, jax.random.key(0), batch))
    endless = make_text_generator(
        config, "audio", **SIZES, begin=BEGIN, end=VOCAB, generation=GreedySearchConfig()
    )
    texts = np.asarray(jax.jit(endless)(params, batch).tokens)
    holds = {v: (texts == v).any(axis=1).mean() for v in range(2, VOCAB)}
    end = min(holds, key=lambda v: abs(holds[v] - 0.5))
    assert 0.1 < holds[end] < 0.9
    return config, method, params, batch, end


def rated(method, params, batch, end, found):
    """The log-probability of generated texts by teacher forcing, and which have ended."""
    counts = np.asarray(found.mask).sum(axis=1)
    ids = np.zeros((len(counts), LENGTH), np.int32)
    for row, tokens, n in zip(ids, np.asarray(found.tokens), counts, strict=True):
        row[: n + 2] = [BEGIN, *tokens[:n], end][:LENGTH]
    lengths = np.minimum(counts + 2, LENGTH)
    texts = {"text": jnp.asarray(ids), "text_mask": jnp.asarray(np.arange(LENGTH)[None] < lengths[:, None])}
    answer = jax.jit(method.predict)(params, {**batch, **texts})
    return -np.asarray(answer.cross_entropy) * (lengths - 1)


@pytest.mark.parametrize(
    "generation",
    [GreedySearchConfig(), BeamSearchConfig(beams=3), SamplingConfig()],
    ids=["greedy", "beam", "sample"],
)
def test_what_is_written_has_the_probability_that_teacher_forcing_gives_it(trained, generation):
    """So the cache, the beams' states and the counting are all right."""
    config, method, params, batch, end = trained
    write = jax.jit(
        make_text_generator(config, "audio", **SIZES, begin=BEGIN, end=end, generation=generation)
    )
    found = write(params, batch, jax.random.key(0))
    assert (
        found.tokens.shape == (16, LENGTH - 1) and len(set(np.asarray(found.mask).sum(axis=1).tolist())) > 1
    )
    np.testing.assert_allclose(
        found.log_probability, rated(method, params, batch, end, found), rtol=1e-4, atol=1e-4
    )
    if generation.name == "sample":
        again = write(params, {k: v[::-1] for k, v in batch.items()}, jax.random.key(0))
        np.testing.assert_array_equal(
            again.tokens[::-1], found.tokens
        )  # by the example's index, not its place
        other = write(params, batch, jax.random.key(1))
        assert (np.asarray(other.tokens) != np.asarray(found.tokens)).any()


def test_greedy_writing_equals_the_uncached_computation(trained):
    config, method, params, batch, end = trained
    found = jax.jit(
        make_text_generator(config, "audio", **SIZES, begin=BEGIN, end=end, generation=GreedySearchConfig())
    )(params, batch)

    @jax.jit
    def logits_after(ids, t):
        """Each continuation's score by teacher forcing: nothing cached, nothing of the writer's own code."""

        def one(v):
            texts = ids.at[:, t].set(v)
            score = lambda n: (
                method.predict(
                    params,
                    {
                        **batch,
                        "text": texts,
                        "text_mask": jnp.broadcast_to(jnp.arange(LENGTH) < n, texts.shape),
                    },
                ).cross_entropy
                * (n - 1)
            )
            return -(score(t + 1))

        return jax.lax.map(one, jnp.arange(VOCAB))

    ids, ended = jnp.zeros((16, LENGTH), jnp.int32).at[:, 0].set(BEGIN), np.zeros(16, bool)
    for t in range(1, LENGTH):
        best = np.asarray(logits_after(ids, t)).argmax(axis=0)
        ended |= best == end
        np.testing.assert_array_equal(np.asarray(found.tokens[:, t - 1])[~ended], best[~ended])
        assert not np.asarray(found.mask[:, t - 1])[ended].any()
        ids = ids.at[:, t].set(jnp.asarray(best, jnp.int32))


def test_errors_say_what_to_change():
    with pytest.raises(ValueError, match="source must be image, audio or video, got 'text'"):
        make_seq2seq(CONFIG, "text", **SIZES)
    only = dataclasses.replace(CONFIG, objective=CTCObjective())
    with pytest.raises(ValueError, match="'ctc' trains no decoder, which 'beam' needs"):
        make_text_generator(only, "audio", **SIZES, **TOKENS, generation=BeamSearchConfig())
    make_text_generator(only, "audio", **SIZES, **TOKENS)
    with pytest.raises(ValueError, match="ctc_weight must lie in"):
        JointObjective(ctc_weight=1.0)


COCA = dataclasses.replace(
    CONFIG,
    objective=AttentionObjective(),
    contrastive=ContrastiveObjective(weight=0.5),
    decoder=dataclasses.replace(CONFIG.decoder, depth=2),
)


@pytest.mark.slow
def test_with_the_contrastive_loss_the_devices_do_not_change_the_result():
    batch = make_batch("image")
    batch["text"][4:6] = batch["text"][0]
    batch["text_mask"] = batch["text"] != 0
    assert_device_invariant(make_seq2seq(COCA, "image", **SIZES), batch, layouts=[("sharded", 4, 2)])


def test_the_contrastive_loss_is_info_nce_of_what_predict_gives():
    """Without dropout and augmentation; equal texts are positives of each other."""
    config = dataclasses.replace(
        COCA, decoder=dataclasses.replace(COCA.decoder, dropout=0.0), augment=Augmentation(PLAIN)
    )
    config = dataclasses.replace(config, image=dataclasses.replace(config.image, dropout=0.0))
    method, batch = make_seq2seq(config, "image", **SIZES), make_batch("image")
    batch["present"] = {"image": np.arange(16) != 3}
    batch["text"][5] = batch["text"][6]
    batch["text_mask"] = batch["text"] != 0
    params = random_params(method.init, jax.random.key(0), batch)
    initial_log_scale = jax.jit(lambda *args: method.init(*args)["contrast"]["log_scale"])
    params["contrast"]["log_scale"] = initial_log_scale(jax.random.key(0), batch)
    loss = jax.jit(lambda p, b: method.loss(p, b, jax.random.key(1)))
    value, aux = loss(params, on_device(batch))
    found = jax.jit(method.predict)(params, on_device(batch)).embeddings
    kept = np.arange(16) != 3
    a, b = (np.asarray(found[m], np.float64)[kept] for m in ("image", "text"))
    texts = [tuple(row) for row in batch["text"][kept]]
    logits = a @ b.T / config.contrastive.temperature
    same = np.array([[x == y for x in texts] for y in texts])
    assert same.sum() > 15
    terms = [
        np.mean(
            np.log(np.exp(m).sum(axis=1))
            - np.array([row[ok].mean() for row, ok in zip(m, same, strict=True)])
        )
        for m in (logits, logits.T)
    ]
    np.testing.assert_allclose(aux["contrastive"], np.mean(terms), rtol=1e-4)
    without, plain = jax.jit(
        lambda p, b: make_seq2seq(
            dataclasses.replace(config, contrastive=ContrastiveObjective(weight=1.0)), "image", **SIZES
        ).loss(p, b, jax.random.key(1))
    )(params, on_device(batch))
    np.testing.assert_allclose(without - value, 0.5 * plain["contrastive"], rtol=1e-4)


def test_what_reads_the_text_alone_does_not_see_the_source():
    method, batch = make_seq2seq(COCA, "image", **SIZES), make_batch("image")
    params = random_params(method.init, jax.random.key(0), batch)
    predict = jax.jit(method.predict)
    before = predict(params, on_device(batch)).embeddings
    after = predict(params, on_device({**batch, "image": 255 - batch["image"]})).embeddings
    np.testing.assert_array_equal(before["text"], after["text"])
    assert (np.asarray(before["image"]) != np.asarray(after["image"])).any()


def test_with_layers_for_the_text_alone_the_cache_changes_nothing():
    config = dataclasses.replace(COCA, decoder=dataclasses.replace(COCA.decoder, depth=3))
    method, batch = make_seq2seq(config, "image", **SIZES), on_device(make_batch("image"))
    batch = {k: v for k, v in batch.items() if k != "present"}
    params = random_params(method.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda x: 2 * x, params)
    write = jax.jit(
        make_text_generator(
            config, "image", **SIZES, begin=BEGIN, end=VOCAB - 1, generation=BeamSearchConfig(beams=2)
        )
    )
    found = write(params, batch)
    wanted = rated(method, params, batch, VOCAB - 1, found)
    np.testing.assert_allclose(found.log_probability, wanted, rtol=1e-4, atol=1e-4)


def test_beams_follow_their_states_in_a_decoder_of_scanned_layers():
    """As many layers as sequences, so that the axes could be confused."""
    decoder = dataclasses.replace(CONFIG.decoder, depth=2, scan_layers=True)
    config = dataclasses.replace(CONFIG, decoder=decoder)
    method = make_seq2seq(config, "image", **SIZES)
    batch = jax.tree.map(
        lambda x: x[:1], on_device({k: v for k, v in make_batch("image").items() if k != "present"})
    )
    params = jax.tree.map(lambda x: 2 * x, random_params(method.init, jax.random.key(0), batch))
    search = BeamSearchConfig(beams=2)
    found = jax.jit(
        make_text_generator(config, "image", **SIZES, begin=BEGIN, end=VOCAB - 1, generation=search)
    )(params, batch)
    wanted = rated(method, params, batch, VOCAB - 1, found)
    np.testing.assert_allclose(found.log_probability, wanted, rtol=1e-4, atol=1e-4)


def test_ways_to_generate_refuse_numbers_that_leave_no_text():
    for match, make in (
        (r"top_p must lie in \(0, 1\], got 0", lambda: SamplingConfig(top_p=0.0)),
        ("top_k must be at least 1, got 0", lambda: SamplingConfig(top_k=0)),
        ("temperature must be positive, got 0", lambda: SamplingConfig(temperature=0.0)),
        ("BeamSearchConfig.beams must be at least 1, got 0", lambda: BeamSearchConfig(beams=0)),
        ("length_penalty must be at least 0, got -1", lambda: BeamSearchConfig(length_penalty=-1.0)),
    ):
        with pytest.raises(ValueError, match=match):
            make()


def test_a_contrastive_loss_needs_layers_for_the_text():
    for wrong in (dict(objective=CTCObjective()), dict(decoder=CONFIG.decoder)):
        with pytest.raises(ValueError, match="at least two layers"):
            dataclasses.replace(COCA, **wrong)


def test_where_it_looks_is_a_share_of_the_sources_content():
    batch = make_batch("audio")
    batch["audio_mask"] = batch["audio_mask"].copy()
    batch["audio_mask"][:4, batch["audio"].shape[1] // 3 :] = False
    batch = on_device(batch)
    method = make_seq2seq(CONFIG, "audio", **SIZES)
    params = random_params(method.init, jax.random.key(0), batch)
    weights = np.asarray(jax.jit(make_cross_attention(CONFIG, "audio", **SIZES))(params, batch))
    there = np.asarray(batch["present"]["audio"]) if "present" in batch else np.ones(16, bool)
    np.testing.assert_allclose(weights[there].sum(axis=2), 1.0, rtol=1e-5)
    short = np.asarray(batch["audio_mask"]).sum(axis=1) < batch["audio_mask"].shape[1] // 2
    assert (short & there).any() and (weights[short & there][:, :, -1] == 0).all()
    scanned = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, scan_layers=True))
    method = make_seq2seq(scanned, "audio", **SIZES)
    params = jax.eval_shape(method.init, jax.random.key(0), batch)
    with pytest.raises(ValueError, match="scan_layers"):
        jax.eval_shape(make_cross_attention(scanned, "audio", **SIZES), params, batch)


PLAIN_IMAGE = DCGANEncoderConfig(width=8, norm="none", dropout=0.5)


def test_descriptions_are_rated_as_by_teacher_forcing_and_by_the_pixels():
    """Dropout and augmentation are on in training only. The fourth text is empty; what pads a text is not read."""
    config = dataclasses.replace(CONFIG, objective=AttentionObjective(), image=PLAIN_IMAGE)
    method, batch = make_seq2seq(config, "image", **SIZES), make_batch("image", n=5)
    del batch["present"]
    batch["text_mask"][3] = False
    batch = on_device(batch)
    params = random_params(method.init, jax.random.key(0), batch)
    how, ids, mask = make_captioner(config, "image", **SIZES), batch["text"], batch["text_mask"]
    describe = lambda params, pixels, ids, mask: how.cross_entropy(
        params, how.encode(params, pixels), ids, mask
    )

    @jax.jit
    def run(pixels, ids):
        total = lambda pixels: (jnp.sum(found := describe(params, pixels, ids, mask)), found)
        return jax.value_and_grad(total, has_aux=True)(pixels)

    (_, found), slope = run(to_float(batch["image"]), ids)
    wanted = jax.jit(method.predict)(params, batch).cross_entropy
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    there = np.arange(5) != 3
    np.testing.assert_array_equal(np.asarray(found) > 0, there)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(np.abs(slope).max(axis=(1, 2, 3)) > 0, there)
    (_, padded), _ = run(to_float(batch["image"]), jnp.where(mask, ids, 7))
    np.testing.assert_array_equal(padded, found)
    # To write a token it looks where `make_cross_attention` says that it does after the one before.
    where = jax.jit(lambda pixels: how.attention(params, how.encode(params, pixels), ids))(
        to_float(batch["image"])
    )
    looked = jax.jit(make_cross_attention(config, "image", **SIZES))(params, batch)
    assert where.shape == (*ids.shape, 25)
    np.testing.assert_allclose(where[:, 1:], looked[:, :-1], rtol=1e-5)
    np.testing.assert_allclose(where[:, 0], 1 / 25, rtol=1e-6)


def test_looks_are_the_mean_token_and_nothing_where_the_source_is_missing():
    config = dataclasses.replace(CONFIG, objective=CTCObjective(), image=PLAIN_IMAGE)
    method, batch = make_seq2seq(config, "image", **SIZES), make_batch("image", n=5)
    batch["present"] = {"image": np.arange(5) != 2}
    batch = on_device(batch)
    params = random_params(method.init, jax.random.key(0), batch)
    found = jax.jit(make_feature_extractor(config, "image", **SIZES))(params, batch)
    encoder = build_encoder("image", config.image)
    tokens = jax.jit(encoder.apply)({"params": params["image"]}, to_float(batch["image"])).values
    assert tokens.shape == (5, 25, 8)
    wanted = np.asarray(tokens, np.float64).mean(axis=1) * (np.arange(5) != 2)[:, None]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_what_describes_no_pictures_is_refused():
    for config, source in (
        (CONFIG, "audio"),
        (dataclasses.replace(CONFIG, objective=CTCObjective()), "image"),
    ):
        with pytest.raises(ValueError, match="a captioner with a decoder"):
            make_captioner(config, source, **SIZES)
