import pickle
import subprocess
import sys

import numpy as np
import pytest

from xmodal_jax.data.shapes import scenes
from xmodal_jax.data.shapes.commands import ACTIONS
from xmodal_jax.data.shapes.questions import ANSWERS
from xmodal_jax.data.shapes.scenes import COLOURS, EXTENT, HELD_OUT, MOTIONS, RADII, RELATIONS, SHAPES, SPLITS
from xmodal_jax.data.shapes.source import SpokenShapes
from xmodal_jax.data.shapes.speech import TRAIN_VOICES, UNSEEN_VOICES, VOICES
from xmodal_jax.data.source import Source

N = 2003
SOURCES = {s: SpokenShapes(s, size=N, modalities=("text", "video", "image"), seed=3) for s in SPLITS}
FACTORS = {s: d.factors(np.arange(N)) for s, d in SOURCES.items()}


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return np.array_equal(a, b)


def pairs(factors):
    present = factors["shape"] >= 0
    return np.where(present, factors["shape"] * 8 + factors["colour"], -1)


def test_is_a_source():
    assert isinstance(SOURCES["train"], Source)
    assert len(SOURCES["train"]) == N


def test_example_does_not_depend_on_batch_order_or_process():
    source = SpokenShapes(size=101, modalities=("text", "image", "video"), frames=3)
    whole = source.batch(np.arange(101))
    order = np.random.default_rng(0).permutation(101)[:37]
    part = pickle.loads(pickle.dumps(source)).batch(order)
    for name in ("caption", "image", "video", "label"):
        assert np.array_equal(part[name], whole[name][order])
    assert all(np.array_equal(part["factors"][k], v[order]) for k, v in whole["factors"].items())
    assert np.array_equal(whole["video"][:, 0], whole["image"])


def test_offset_shifts_and_seed_and_split_change_the_stream():
    a, b = SpokenShapes(size=11), SpokenShapes(size=5, offset=6)
    assert equal(a.factors(np.arange(6, 11)), b.factors(np.arange(5)))
    for other in (SpokenShapes(size=11, seed=1), SpokenShapes("test", size=11)):
        assert not np.array_equal(
            a.factors(np.arange(11))["position"], other.factors(np.arange(11))["position"]
        )


def test_held_out_pairs():
    held_out = HELD_OUT[:, 0] * 8 + HELD_OUT[:, 1]
    assert sorted(HELD_OUT[:, 0]) == sorted(HELD_OUT[:, 1]) == list(range(8))
    for split, factors in FACTORS.items():
        found = np.isin(pairs(factors), held_out)
        if split == "compositions":
            assert (found.sum(axis=1) == 1).all()
            assert set(pairs(factors)[found]) == set(held_out)
        else:
            assert not found.any()
            assert len(np.unique(pairs(factors))) == 1 + 56


def test_objects_of_a_scene_differ():
    for factors in FACTORS.values():
        p = np.where(factors["shape"] < 0, -1 - np.arange(3), pairs(factors))
        assert (np.diff(np.sort(p, axis=1), axis=1) > 0).all()


def test_objects_stay_inside_and_apart():
    f = FACTORS["train"]
    present, radius = f["shape"] >= 0, RADII[np.maximum(f["size"], 0)]
    reach = (EXTENT * radius)[..., None] - 1e-5
    assert ((f["position"] >= reach) & (f["position"] <= 1 - reach))[present].all()
    for a, b in ((0, 1), (1, 2), (0, 2)):
        both = present[:, a] & present[:, b]
        distance = np.linalg.norm(f["position"][:, a] - f["position"][:, b], axis=-1)
        assert (distance >= 1.0 * (radius[:, a] + radius[:, b]))[both].all()


def test_relations_and_places_are_unambiguous():
    f = FACTORS["train"]
    for name, a, b in (("relation", 0, 1), ("second_relation", 1, 2)):
        there = f[name] >= 0
        assert (there == (f["num_objects"] > b)).all()
        dx, dy = (f["position"][:, a] - f["position"][:, b])[there].T
        expected = np.where(np.abs(dx) > np.abs(dy), np.where(dx < 0, 0, 1), np.where(dy < 0, 2, 3))
        assert np.array_equal(f[name][there], expected)
        assert (np.maximum(np.abs(dx), np.abs(dy)) >= 2 * np.minimum(np.abs(dx), np.abs(dy))).all()
    one = f["num_objects"] == 1
    x, y = f["position"][one, 0].T
    column, line = (np.digitize(c, [0.4, 0.6]) for c in (x, y))
    assert np.array_equal(f["place"][one], line * 3 + column)
    assert (f["place"][~one] == -1).all()


@pytest.mark.parametrize("name,count", [("shape", 8), ("colour", 8), ("size", 2), ("texture", 3)])
def test_factors_are_uniform(name, count):
    values = FACTORS["train"][name]
    share = np.bincount(values[values >= 0], minlength=count) / (values >= 0).sum()
    assert np.abs(share - 1 / count).max() < 0.04


def test_at_most_one_object_moves_and_stays_inside():
    f = FACTORS["train"]
    assert ((f["motion"] > 0).sum(axis=1) <= 1).all()
    assert set(np.unique(f["motion"])) == set(range(-1, len(MOTIONS)))
    moves = (f["motion"] >= 1) & (f["motion"] <= 4)
    step = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])[f["motion"][moves] - 1]
    end = f["position"][moves] + step * f["travel"][moves][:, None]
    assert (f["travel"][moves] >= 0.15).all()
    assert (end >= 0.1).all() and (end <= 0.9).all()


def test_labels_and_modalities():
    source = SpokenShapes(size=50, modalities=("image",))
    batch = source.batch(np.arange(50))
    assert set(batch) == {"image", "label", "factors"} and batch["label"].dtype == np.int32
    alone = batch["factors"]["num_objects"] == 1
    assert 5 < alone.sum() < 45
    np.testing.assert_array_equal(batch["label"][alone], batch["factors"]["shape"][alone, 0])
    assert (batch["label"][~alone] == -1).all()
    assert source.class_prompts[0][0].endswith(source.class_names[0])


def test_meanings_of_test_scenes_are_nearly_all_distinct():
    source = SpokenShapes("test", size=500)
    assert len(set(source.meanings(np.arange(500)))) > 480


def place_of(pair, row):
    return next(k for k in range(3) if (row["shape"][k], row["colour"][k]) == pair)


def named(words):
    words = words.split()
    return SHAPES.index(words[1]), COLOURS.index(words[0])


def test_answers_follow_from_the_factors():
    answers = {}
    for split in SPLITS:
        source = SOURCES[split]
        for i, asked in enumerate(source.questions_for(np.arange(500))):
            assert i % 100 or source.questions(i) == asked
            row = {k: v[i].tolist() for k, v in FACTORS[split].items()}
            objects = list(zip(row["shape"], row["colour"], strict=True))[: row["num_objects"]]
            for kind, question, answer in asked:
                assert answer in ANSWERS
                answers.setdefault((kind, question.split()[0]), []).append(answer)
                if kind == "existence":
                    expected = "yes" if named(" ".join(question.split()[-2:])) in objects else "no"
                elif kind == "count":
                    expected = ("one", "two", "three")[len(objects) - 1]
                elif kind == "colour":
                    (expected,) = (COLOURS[c] for s, c in objects if SHAPES[s] == question.split()[-1])
                elif kind == "shape":
                    (expected,) = (SHAPES[s] for s, c in objects if COLOURS[c] == question.split()[-2])
                elif kind == "motion":
                    expected = MOTIONS[row["motion"][place_of(named(question[len("how does the ") :]), row)]]
                else:
                    words = question.split(" the ")
                    a, b = (row["position"][place_of(named(w), row)] for w in words[1:])
                    dx, dy = a[0] - b[0], a[1] - b[1]
                    actual = (("left", "right")[dx > 0], ("above", "below")[dy > 0])[abs(dy) > abs(dx)]
                    said = [w for w in question.split() if w in RELATIONS]
                    expected = actual if not said else "yes" if said[0] == actual else "no"
                assert answer == expected, (question, answer, objects)
    for (kind, _), given in answers.items():
        if "yes" in given:
            assert abs(np.mean([a == "yes" for a in given]) - 0.5) < 0.06
        elif kind in ("relation", "count", "motion"):
            most = max(given.count(a) for a in set(given)) / len(given)
            assert most < 1.6 / len(set(given)), (kind, most)


def test_asked_both_ways_the_objects_are_exchanged():
    source, rows = SOURCES["train"], np.arange(200)
    for once, twice in zip(
        source.questions_for(rows), source.questions_for(rows, both_ways=True), strict=True
    ):
        more = [question for question in twice if question not in once]
        (*_, asked), (*_, exchanged) = (
            [q for q in some if q[0] == "relation"] or [None] for some in (once, more)
        )
        assert len(more) == (asked is not None) and [q for q in twice if q not in more] == once
        if asked is None:
            continue
        objects = [question.split(" the ")[1:] for _, question, _ in (asked, exchanged)]
        names = [[" ".join(part.split()[:2]) for part in parts] for parts in objects]
        assert names[0] == names[1][::-1]
        pair = {asked[2], exchanged[2]}
        if asked[1].startswith("where"):
            assert pair in ({"left", "right"}, {"above", "below"})
        else:
            assert pair != {"yes"}  # a relation never holds both ways


def test_commands_name_their_target_alone():
    seen = set()
    words = {"size": scenes.SIZES, "colour": COLOURS, "texture": scenes.TEXTURES, "shape": SHAPES}
    for i, commands in enumerate(SOURCES["train"].commands_for(np.arange(400))):
        f = {k: FACTORS["train"][k][i] for k in ("num_objects", *words)}
        assert i % 100 or SOURCES["train"].commands(i) == commands
        assert [t for _, _, t in commands] == list(range(f["num_objects"]))
        for command, action, target in commands:
            seen.add(action)
            said = command.split()
            fits = [
                all(words[k][f[k][j]] in said for k in words if any(w in said for w in words[k]))
                for j in range(f["num_objects"])
            ]
            assert fits == [j == target for j in range(f["num_objects"])], command
    assert seen == set(ACTIONS)


def test_voices_of_splits():
    for split, factors in FACTORS.items():
        names = {VOICES[v].name for v in factors["voice"]}
        expected = UNSEEN_VOICES if split == "voices" else TRAIN_VOICES
        assert names == {v.name for v in expected}
    assert not {v.name.split("+")[-1] for v in UNSEEN_VOICES} & {v.name.split("+")[-1] for v in TRAIN_VOICES}


def test_audio(tmp_path):
    make = lambda **more: SpokenShapes(
        size=6, modalities=("audio",), audio_cache=tmp_path, workers=1, max_seconds=2.5, **more
    )
    clean, noisy = make().batch([4, 1]), make(noise=0.1).batch([1, 4])
    assert clean["audio"].shape == clean["audio_mask"].shape == (2, 40_000)
    assert clean["audio"].dtype == np.int16 and not clean["audio"][~clean["audio_mask"]].any()
    assert (clean["audio_mask"].sum(axis=1) > 8000).all()
    for k in range(2):
        m = clean["audio_mask"][k]
        signal = clean["audio"][k][m].astype(float)
        noise = noisy["audio"][1 - k][m] - signal
        assert np.sqrt(np.mean(noise**2) / np.mean(signal**2)) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    "bad",
    [{"split": "valid"}, {"modalities": ("smell",)}, {"modalities": ()}, {"image_size": 8}, {"size": 0},
     {"noise": -1.0}],
)  # fmt: skip
def test_errors_name_the_argument(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SpokenShapes(**bad)


def test_index_out_of_range():
    with pytest.raises(IndexError, match=r"0\.\.4"):
        SpokenShapes(size=5).batch([5])


def test_does_not_load_jax():
    code = "import sys, xmodal_jax.data.shapes.source; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
