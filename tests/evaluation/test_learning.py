"""What classifiers learn from generated images: equal updates, equal classes, and scores where the answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation import painters
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.data.splits import Splits
from xmodal_jax.evaluation import learning
from xmodal_jax.evaluation.images import ImageGenerator
from xmodal_jax.evaluation.latent import generation_inputs, latent_learning
from xmodal_jax.evaluation.latent_data import LatentData
from xmodal_jax.evaluation.learning import (
    Augmentation,
    ImageClassifier,
    LabelledImages,
    LearningEvaluation,
    LearningEvaluator,
    augmentation_metrics,
    best_ratio,
    find_targets,
    labelled_examples,
    match_labels,
    read_labels,
    shuffled_batches,
)
from xmodal_jax.models.gan import ClassCondition, NoCondition
from xmodal_jax.nets.encoders import MLPEncoderConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.types import Method

CLASSES, SIDE = 6, 4
TARGETS = {"class": tuple("abcdef")}
SMALL = LearningEvaluation(
    steps=40,
    examples=60,
    test_examples=60,
    real_sizes=(12,),
    ratios=(1.0, 2.0),
    seeds=2,
    batch_size=16,
    translate=0,
)


@pytest.fixture(autouse=True)
def small_classifiers(monkeypatch):
    """Dense layers, which compile in a second."""
    monkeypatch.setattr(learning, "ENCODER", MLPEncoderConfig(width=16, depth=1))
    monkeypatch.setattr(learning, "OPTIMIZER", Optimizer("adam", learning_rate=1e-2))


def class_pictures(labels, seed):
    """Noise, and a bright pixel at the place of the class."""
    labels = np.asarray(labels)
    images = np.random.default_rng(seed).integers(0, 90, (len(labels), SIDE, SIDE, 1)).astype(np.uint8)
    images[np.arange(len(labels)), labels // SIDE, labels % SIDE] = 255
    return images


def labelled(count, seed):
    labels = np.random.default_rng(seed).permutation(np.arange(count) % CLASSES).astype(np.int32)
    return LabelledImages(class_pictures(labels, seed), labels[:, None])


TRAIN, VALIDATION, TEST = labelled(60, 1), labelled(30, 2), labelled(60, 3)


def evaluator(generate=None, options=SMALL):
    return LearningEvaluator(generate, TRAIN, VALIDATION, TEST, TARGETS, options)


def test_real_images_as_generated_ones_have_the_score_of_real_ones():
    """The same classifier after the same updates, so that also the accuracy of each class is the same."""
    learned = evaluator(lambda params, indices: TRAIN.images[indices])({})
    metrics = learned.metrics
    assert metrics["learning/generated_accuracy"] == metrics["learning/real_accuracy"] > 0.9
    assert metrics["learning/generated_accuracy_sd"] == metrics["learning/real_accuracy_sd"]
    by_training = learned.class_accuracies["class"]
    np.testing.assert_array_equal(by_training["generated"], by_training["real"])
    # All classes are equally frequent.
    assert np.mean(by_training["real"]) == pytest.approx(metrics["learning/real_accuracy"])


def test_noise_teaches_nothing_and_adds_nothing():
    """Pictures of random classes: the accuracy of each of eight classifiers is about 1 / 6, with a deviation of the
    mean of at most 1 / 6 / sqrt(8)."""
    noise = np.random.default_rng(5)
    generate = lambda params, indices: class_pictures(noise.integers(0, CLASSES, len(indices)), 6)
    metrics = evaluator(generate, dataclasses.replace(SMALL, seeds=8, ratios=())).__call__({}).metrics
    assert metrics["learning/generated_accuracy"] < 1 / 6 + 4 / 6 / np.sqrt(8)
    assert metrics["learning/real_accuracy"] > 0.9
    assert not [name for name in metrics if "augmented" in name]


@pytest.fixture
def trainings(monkeypatch):
    """What each classifier is trained on, and by how many updates of how many images."""
    records = []
    fit = ImageClassifier.fit

    def recorded(self, images, indices, *, seed):
        record = {
            "indices": np.asarray(indices),
            "labels": images.labels,
            "seed": seed,
            "updates": [],
        }
        records.append(record)
        update = self.trainer.update

        def counted(state, batch, key):
            record["updates"].append(len(batch["labels"]))
            return update(state, batch, key)

        self.trainer.update = counted
        try:
            return fit(self, images, indices, seed=seed)
        finally:
            self.trainer.update = update

    monkeypatch.setattr(ImageClassifier, "fit", recorded)
    return records


def test_all_classifiers_have_equal_updates_and_their_images_equal_classes(trainings):
    options = dataclasses.replace(SMALL, ratios=(0.5, 2.0), real_sizes=(12, 30))
    evaluate = evaluator(lambda params, indices: class_pictures(TRAIN.labels[indices, 0], 7), options)
    evaluate({})
    # Two seeds of: generated images alone, real ones alone, and for two sizes real ones alone and two ratios.
    assert len(trainings) == 2 * (2 + 2 * (1 + 2))
    assert all(record["updates"] == [16] * 40 for record in trainings)
    frequencies = lambda labels: np.bincount(labels, minlength=CLASSES) / len(labels)
    for record in trainings:
        labels, indices = record["labels"][:, 0], record["indices"]
        real, generated = indices[indices < 60], indices[indices >= 60]
        assert len(np.unique(real)) == len(real)
        if len(real) and len(generated) >= len(real):
            assert len(generated) == 2 * len(real)
            counts = [np.bincount(labels[x], minlength=CLASSES) for x in (real, generated)]
            np.testing.assert_array_equal(2 * counts[0], counts[1])
        elif not len(real):
            np.testing.assert_array_equal(frequencies(labels[generated]), frequencies(TRAIN.labels[:, 0]))
    # Classifiers of real images serve the next generator.
    trainings.clear()
    evaluate({})
    assert len(trainings) == 2 * (1 + 2 * 2)


def test_the_ratio_is_the_best_one_on_validation_images():
    rows = [
        Augmentation(12, 0.0, (0.9, 0.9), (0.5, 0.7)),
        Augmentation(12, 1.0, (0.3, 0.5), (0.9, 0.9)),
        Augmentation(12, 2.0, (0.5, 0.5), (0.6, 0.7)),
        Augmentation(12, 4.0, (0.4, 0.6), (0.8, 0.8)),
    ]
    assert best_ratio(rows) is rows[2]
    metrics = augmentation_metrics(rows)
    assert metrics["learning/ratio_of_12"] == 2.0
    assert metrics["learning/real_accuracy_of_12"] == pytest.approx(0.6)
    assert metrics["learning/augmented_accuracy_of_12"] == pytest.approx(0.65)
    assert metrics["learning/gain_of_12"] == pytest.approx(0.05)
    assert metrics["learning/gain_of_12_sd"] == pytest.approx(np.std([0.1, 0.0], ddof=1))


def test_the_best_ratio_of_a_real_evaluation():
    learned = evaluator(lambda params, indices: class_pictures(TRAIN.labels[indices, 0], 8))({})
    rows = learned.augmentations
    assert [row.ratio for row in rows] == [0.0, 1.0, 2.0] and all(len(row.test) == 2 for row in rows)
    best = max(rows[1:], key=lambda row: sum(row.validation))
    assert learned.metrics["learning/augmented_accuracy_of_12"] == pytest.approx(np.mean(best.test))
    wanted = np.mean(best.test) - np.mean(rows[0].test)
    assert learned.metrics["learning/gain_of_12"] == pytest.approx(wanted)


def test_a_training_depends_on_its_seed_alone():
    classifier = ImageClassifier((SIDE, SIDE, 1), (CLASSES,), steps=5, batch_size=16, translate=1)
    fit = lambda seed: classifier.fit(TRAIN, np.arange(20), seed=seed)
    leaves = lambda params: np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
    np.testing.assert_array_equal(leaves(fit(3)), leaves(fit(3)))
    assert not np.array_equal(leaves(fit(3)), leaves(fit(4)))


def test_batches_are_whole_epochs():
    order = shuffled_batches(np.array([7, 3, 5]), steps=6, batch_size=2, seed=0)
    assert order.shape == (6, 2)
    for epoch in order.reshape(4, 3):
        assert sorted(epoch) == [3, 5, 7]


def test_matched_examples_have_the_wanted_classes_and_repeat_only_where_there_are_too_few():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (40, 2))
    wanted = rng.integers(0, 3, (25, 2))
    chosen = match_labels(labels, wanted, np.random.default_rng(1))
    np.testing.assert_array_equal(labels[chosen], wanted)
    for row in np.unique(wanted, axis=0):
        available, required = ((x == row).all(axis=1).sum() for x in (labels, wanted))
        repeats = np.bincount(chosen[(wanted == row).all(axis=1)])
        assert repeats.max() == -(-required // available)
    assert not np.array_equal(chosen, match_labels(labels, wanted, np.random.default_rng(2)))


def test_targets_of_scenes_are_what_captions_say_of_one_object():
    scenes = SpokenShapes("train", size=60, modalities=("text", "image"))
    chosen = labelled_examples(scenes, 10, ("image", "text"))
    targets = find_targets(chosen)
    labels = read_labels(chosen, targets)
    assert labels.shape == (10, 5)
    for row, meaning in zip(labels, chosen.meanings(), strict=True):
        names = {t: targets[t][k] for t, k in zip(targets, row, strict=True)}
        wanted = [names["size"], names["colour"], names["texture"], names["shape"], "at", names["place"]]
        assert str(meaning) == " ".join(wanted)


def source(count=30, seed=0, **fields):
    images = labelled(count, seed)
    return ArraySource({"image": images.images, "label": images.labels[:, 0], **fields}, TARGETS["class"])


def test_examples_are_labelled_complete_and_evenly_spread():
    labels = np.where(np.arange(30) % 3 == 0, -1, 1).astype(np.int32)
    present = {"image": np.arange(30) != 4, "text": np.arange(30) != 5}
    fields = {"image": np.zeros((30, 2, 2, 1), np.uint8), "caption": np.array(["a"] * 30, object)}
    data = ArraySource({**fields, "label": labels, "present": present})
    assert labelled_examples(data, 100, ("image", "text")).source_indices(None).size == 18
    assert labelled_examples(data, 100, ("image",)).source_indices(None).size == 19
    few = labelled_examples(data, 3, ("image",))
    assert len(few) == 3 and (few.class_labels() >= 0).all()
    unlabelled = ArraySource({"image": data.arrays["image"]})
    assert labelled_examples(unlabelled, 3, ("image",)) is None
    assert find_targets(unlabelled) == {} and find_targets(source()) == TARGETS


def stub_generator():
    """Pictures of the class; the first noise is the last pixel."""

    def predict(params, batch):
        place = jnp.arange(SIDE * SIDE)[None] == batch["label"][:, None]
        images = jnp.where(place, 1.0, -1.0).at[:, -1].set(jnp.clip(batch["noise"][:, 0], -1, 1))
        return images.reshape(-1, SIDE, SIDE, 1)

    return ImageGenerator(Method(None, None, predict), None, noise=2, batch_size=8)


def test_images_are_generated_for_the_conditions_of_training_examples():
    splits = Splits(source(30, 1), source(20, 2), {"test": source(20, 3)})
    options = dataclasses.replace(SMALL, examples=18, real_sizes=(12,), ratios=(3.0,))
    evaluate = learning.image_learning(options, splits, stub_generator(), ClassCondition(), seed=0)
    assert options.generated == 36 and len(evaluate.train.labels) == 18
    indices = np.arange(36) % 18
    images = evaluate.generate({}, indices)
    np.testing.assert_array_equal(
        images[..., 0].reshape(36, -1)[:, :-1].argmax(axis=1), evaluate.train.labels[indices, 0]
    )
    noise = images[:, -1, -1, 0]
    assert np.mean(noise[:18] == noise[18:]) < 0.3  # some are clipped
    assert np.isfinite(list(evaluate({}).metrics.values())).all()


@pytest.mark.parametrize(
    "labels,condition,steps,reason",
    [
        (True, NoCondition(), 2, "from noise alone"),
        (False, ClassCondition(), 2, "no images with known classes"),
        (True, ClassCondition(), 0, "turned off"),
    ],
)
def test_where_nothing_is_measured_the_reason_is_told(labels, condition, steps, reason):
    data = source() if labels else ArraySource({"image": TRAIN.images})
    splits = Splits(data, data, {"test": data})
    options = dataclasses.replace(SMALL, steps=steps)
    learned = learning.image_learning(options, splits, stub_generator(), condition, seed=0)({})
    assert learned.metrics == {} and reason in learned.reason


def latent_data(names, labels):
    data = painters.source(names, labels)
    empty = LatentData(**dict.fromkeys(LatentData._fields))
    return empty._replace(modalities=tuple(names), source=data, validation=data, test=data)


def test_a_vae_generates_from_captions_or_from_all_other_modalities():
    """Images of a perfect translator are worth as much as real ones. One that ignores its inputs makes one image of all
    classes: each of eight classifiers has an accuracy of 1 / 4 on average, with a deviation of at most sqrt(3) / 4."""
    options = dataclasses.replace(SMALL, ratios=(), seeds=1)
    labels = np.arange(40) % painters.CLASSES
    for names in (("text", "image", "audio"), painters.IMAGES):
        evaluate = latent_learning(painters.explore(names), latent_data(names, labels), options)
        metrics = evaluate({}).metrics
        assert metrics["learning/generated_accuracy"] == metrics["learning/real_accuracy"] > 0.9
        evaluate = latent_learning(
            painters.explore(names, painters.ignorant),
            latent_data(names, labels),
            dataclasses.replace(options, seeds=8),
        )
        images = evaluate.generate({}, np.arange(40))
        np.testing.assert_array_equal(images, np.repeat(images[:1], 40, axis=0))
        accuracy = evaluate({}).metrics["learning/generated_accuracy"]
        assert accuracy < 1 / 4 + 2 * np.sqrt(3) / 4 / np.sqrt(8)
    explorer = painters.explore(("image", "text", "text_es", "label", "audio"))
    assert generation_inputs(explorer, "image") == ("label",)
    assert generation_inputs(painters.explore(("image", "text", "text_es", "audio")), "image") == (
        "text",
        "text_es",
    )


def test_a_conditional_vae_generates_images_of_a_class():
    explorer = painters.explore(("image",))
    data = latent_data(("image",), np.arange(40) % painters.CLASSES)
    options = dataclasses.replace(SMALL, ratios=(), seeds=1)
    assert "--model cvae" in latent_learning(explorer, data, options)({}).reason
    of_class = lambda params, labels, key: jnp.stack([labels, 0.0 * labels], axis=-1).astype(jnp.float32)[
        None, None
    ]
    explorer.vae = explorer.vae._replace(class_latents=of_class)
    metrics = latent_learning(explorer, data, options)({}).metrics
    assert metrics["learning/generated_accuracy"] == metrics["learning/real_accuracy"] > 0.9
    assert "No modality" in latent_learning(painters.explore(("text",)), data, options)({}).reason


def test_several_targets_are_predicted_at_once():
    """The mean over targets, and each by its name; a target that cannot be told is at chance."""
    hidden = np.random.default_rng(0).integers(0, 2, (60, 1)).astype(np.int32)
    both = lambda images, more: LabelledImages(images.images, np.concatenate([images.labels, more], axis=1))
    train, test = both(TRAIN, hidden), both(TEST, hidden[::-1])
    targets = TARGETS | {"hidden": ("no", "yes")}
    options = dataclasses.replace(SMALL, ratios=())
    learned = LearningEvaluator(lambda params, k: train.images[k], train, test, test, targets, options)({})
    metrics = learned.metrics
    assert (
        metrics["learning/real_accuracy_class"] > 0.9 and 0.2 < metrics["learning/real_accuracy_hidden"] < 0.8
    )
    mean = (metrics["learning/real_accuracy_class"] + metrics["learning/real_accuracy_hidden"]) / 2
    assert metrics["learning/real_accuracy"] == pytest.approx(mean)
    assert {t: len(x["real"]) for t, x in learned.class_accuracies.items()} == {"class": CLASSES, "hidden": 2}


def test_augmentation_shifts_training_images():
    """By at most one pixel along each axis; edges are continued."""
    classifier = ImageClassifier((SIDE, SIDE, 1), (CLASSES,), steps=1, translate=1)
    batch = {"image": jnp.asarray(TRAIN.images), "index": jnp.arange(60)}
    images = np.asarray(classifier.augment(batch, jax.random.key(0)))
    padded = np.pad(TRAIN.images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    shifts = [
        [(y, x) for y in range(3) for x in range(3) if np.array_equal(image, p[y : y + SIDE, x : x + SIDE])]
        for image, p in zip(images, padded, strict=True)
    ]
    assert images.dtype == np.uint8 and all(shifts) and len({shift[0] for shift in shifts}) == 9


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(examples=0), "examples must be at least 1"),
        (dict(steps=-1), "steps must be at least 0"),
        (dict(ratios=(0.0,)), "ratios must be positive"),
        (dict(real_sizes=(0,)), "real_sizes are numbers of images"),
    ],
)
def test_options_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        LearningEvaluation(**changes)


def test_a_smoke_run_is_small_and_one_without_stays_without():
    assert LearningEvaluation().shrink().steps < 5
    assert LearningEvaluation(steps=0).shrink().steps == 0


def test_a_class_that_only_test_images_have_is_never_predicted():
    """Of classes without names; the report has a row for it."""
    splits = []
    for seed, classes in ((0, 2), (1, 2), (2, 3)):
        labels = (np.arange(12) % classes).astype(np.int32)
        splits.append(ArraySource({"image": class_pictures(labels, seed), "label": labels}))
    options = dataclasses.replace(SMALL, steps=2, ratios=(), seeds=1)
    make = lambda train: (
        lambda params, indices: np.repeat(train.batch(np.arange(1))["image"], len(indices), axis=0)
    )
    learned = learning.make_learning_evaluator(options, splits, make)({})
    assert learned.targets == {"class": ("0", "1", "2")}
    assert learned.class_accuracies["class"]["real"].shape == (3,)
    assert learned.class_accuracies["class"]["real"][2] == 0.0


def test_images_of_one_class_teach_nothing():
    labels = np.full(4, 3, np.int32)
    one = ArraySource({"image": class_pictures(labels, 0), "label": labels})
    assert find_targets(one) == {}
    assert find_targets(ArraySource(one.arrays, TARGETS["class"])) == {}


@pytest.mark.parametrize("ratio", [float("nan"), float("inf"), 0.0])
def test_ratios_are_positive_and_finite(ratio):
    with pytest.raises(ValueError, match="ratios must be positive and finite"):
        LearningEvaluation(ratios=(1.0, ratio))


def test_fewer_generated_images_than_real_ones_are_refused():
    few = LabelledImages(*(x[:59] for x in TRAIN))
    with pytest.raises(ValueError, match="59 images are too few, needed are .* 60"):
        evaluator().score(few)
