"""Adding something: a toy of each kind is added to a copy of the package, and works; how many files that touches.

docs/ARCHITECTURE.md, section "Adding something", has the same numbers.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parent.parent


class Toy(NamedTuple):
    """Something to add."""

    files: dict[str, str]
    """New files."""
    edits: dict[str, list[tuple[str, str]]]
    """What is inserted into files that exist: each text before the first occurrence of another, both given."""
    check: str
    """Statements that use the toy."""


PLACE = re.compile(r"# xmodal_jax/(\S+), above: (.+)\n")


def guide_toy(name, part=0, check="", parts="## A likelihood of your own"):
    """What a guide in docs/ adds: each block of code that begins with a place, such as
    ``# xmodal_jax/types.py, above: "series": Kind(``, is inserted there; the other blocks use it, and then ``check``.
    ``part``: 0 is what stands before the heading ``parts``, 1 what stands after it."""
    text = (ROOT / "docs" / name).read_text().split(parts)[part]
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    edits, checks = {}, []
    for block in blocks:
        place = PLACE.match(block)
        if place is None:
            checks.append(block)
            continue
        code, anchor = block[place.end() :], place[2]
        # Entries of a table stand above one of its lines, definitions above another one.
        after = "    " if code.startswith(" ") else "\n\n"
        code = code if after == "\n\n" else code.removeprefix("    ")
        edits.setdefault(place[1], []).append((anchor, code + after))
    return Toy({}, edits, "\n".join([*checks, check]))


POINTS_OF_A_RUN = r"""
from xmodal_jax.data.media import Resize
from xmodal_jax.inference.inputs import InputFormat, InputSource, as_list, collect_inputs

of_graphs, clouds = prepare, load_npz("clouds.npz", "all")
prepare = fit_transforms(clouds, BadExamples(), dict(tokenizer="word", vocab_size=None, cleanup="none"))
new = InputFormat(("points",), {"points": (30, 3)}, 16000, None, Resize(), prepare)
source = InputSource(collect_inputs(new, {"points": [np.ones((30, 3)), np.ones((20, 3))]}), new)
read = prepare(source.batch(np.arange(2)))
assert read["points_mask"].reshape(2, 30, -1).any(axis=-1).sum(axis=1).tolist() == [30, 20]
assert len(as_list("points", np.ones((30, 3)))) == 1 and len(as_list("points", np.ones((2, 30, 3)))) == 2
assert "[30, 3]" in new.describe("points")

import pytest
from xmodal_jax.report.alignment import content

shapes = {"graph": (8, 11), "graph_mask": (8,)}
new = InputFormat(("graph",), shapes, 16000, None, Resize(), of_graphs)
ragged = [one[:n] for one, n in zip(graph, mask.sum(axis=1))]
read = InputSource(collect_inputs(new, {"graph": [*ragged, None][:8]}), new).batch(np.arange(8))
np.testing.assert_array_equal(read["graph"], graph[:8])
np.testing.assert_array_equal(read["graph_mask"], mask[:8])
assert read["graph"].dtype == np.float32 and "its first axis may be shorter" in new.describe("graph")
for wrong in (np.ones((9, 11)), np.ones((8, 10)), np.ones((0, 11)), np.ones(11)):
    with pytest.raises(ValueError, match="less along the axes of the mask"):
        InputSource({"graph": [wrong]}, new).batch(np.arange(1))
without = new._replace(shapes={"graph": (8, 11)})
assert set(InputSource({"graph": list(graph[:2])}, without).batch(np.arange(2))) == {"graph"}
with pytest.raises(ValueError, match="the training data have"):
    InputSource({"graph": [graph[0, :7]]}, without).batch(np.arange(1))
lacks = InputSource({"graph": [None, ragged[1]], "text": ["red", "blue"]}, new._replace(modalities=("text", "graph")))
read = lacks.batch(np.arange(2))
assert not read["graph_mask"][0].any() and read["graph_mask"][1].sum() == mask[1].sum()
picture = content(load_npz("molecules.npz", "all").batch(np.arange(2)), "graph", 1)
assert picture.dtype == np.uint8 and picture.shape[2] == 3
np.savez("wrong.npz", graph=graph, graph_mask=mask[:, :5])
with pytest.raises(ValueError, match=r"'graph_mask' is \(1000, 5\), 'graph' is \(1000, 8, 11\)"):
    load_npz("wrong.npz", "all")
"""
COUNTS_EVERYWHERE = """
import jax.numpy as jnp
from scipy.stats import poisson
from xmodal_jax.models.vae.modalities import CountsConfig
from xmodal_jax.evaluation.attention import AttentionInputs
from xmodal_jax.models import FusionConfig
from xmodal_jax.report.classification_figures import PANELS

assert "counts" in PANELS
from xmodal_jax.report.alignment import content

assert content(batch, "counts", 1).dtype == np.uint8  # bars
shown = AttentionInputs(batch, batch, FusionConfig(), None).attended("counts", 1, np.ones(1))
np.testing.assert_array_equal(shown.content, batch["counts"][1])
from xmodal_jax.data.splits import FittedTransforms
from xmodal_jax.inference.outputs import OutputFormat
from xmodal_jax.models.vae.modalities import ModalityConfigs

held = OutputFormat(ModalityConfigs(), FittedTransforms()).to_outputs("counts", batch)
np.testing.assert_array_equal(held, batch["counts"])
log_rate = rng.normal(size=(2, 8, 4)).astype(np.float32)
found = CountsConfig().log_likelihood(jnp.asarray(log_rate), batch["counts"], None)
np.testing.assert_allclose(found, poisson.logpmf(batch["counts"], np.exp(np.float64(log_rate))).sum(-1), rtol=1e-5)
"""


TOYS = {
    "encoder": Toy(
        {
            "nets/toy.py": '''
"""An encoder of images that averages all pixels."""

import flax.linen as nn

from xmodal_jax.types import Tokens


class AveragePixels(nn.Module):
    """``[B, H, W, C] -> [B, 1, width]``."""

    width: int

    @nn.compact
    def __call__(self, inputs, mask=None, *, keys=None):
        return Tokens(nn.Dense(self.width, name="out")(inputs.mean(axis=(1, 2)))[:, None], None)
'''
        },
        {
            "nets/encoders.py": [
                (
                    "from xmodal_jax.nets.transformer import",
                    "from xmodal_jax.nets.toy import AveragePixels\n",
                ),
                (
                    "ImageBackbone = (",
                    '''@dataclasses.dataclass(frozen=True)
class AveragePixelsConfig(PlainEncoderConfig):
    """The average of all pixels."""

    name: ClassVar[str] = "average_pixels"

    def build(self):
        return AveragePixels(self.width)


''',
                ),
                ("    | DCGANEncoderConfig", "    | AveragePixelsConfig\n"),
            ]
        },
        """
from xmodal_jax.core.parts import choose
from xmodal_jax.models.contrastive import ContrastiveConfig, make_contrastive
from xmodal_jax.nets.encoders import ImageEncoder
config = ContrastiveConfig(image=choose(ImageEncoder, "average_pixels")(width=24))
method = make_contrastive(config, ("text", "image"), vocab_size=9)
params = jax.eval_shape(method.init, KEY, BATCH)
assert params["image"]["encoder"]["out"]["kernel"].shape == (3, 24)
value, aux = jax.eval_shape(method.loss, params, BATCH, KEY)
assert value.shape == () and "text_image" in aux
""",
    ),
    "contrastive loss": Toy(
        {
            "losses/toy.py": '''
"""A contrastive loss without negatives."""

import jax.numpy as jnp


def pair_distance(a, b, *, present):
    """Half the squared distance of each pair, ``[B]``; 0 where absent."""
    return jnp.where(present, 0.5 * jnp.square(a - b).sum(axis=1), 0.0)
'''
        },
        {
            "models/contrastive.py": [
                (
                    "from xmodal_jax.losses.contrastive import",
                    "from xmodal_jax.losses.toy import pair_distance\n",
                ),
                (
                    "AnyObjective = ",
                    '''@dataclasses.dataclass(frozen=True)
class PairDistance(Objective):
    """Half the squared distance of each pair."""

    name: ClassVar[str] = "pair_distance"

    def __call__(self, pairs, params, scale):
        return pairs.mean_share(pair_distance(pairs.a, pairs.b, present=pairs.present))


''',
                ),
                (" | Sigmoid", " | PairDistance"),
            ]
        },
        """
from xmodal_jax.core.parts import choose
from xmodal_jax.models.contrastive import AnyObjective, ContrastiveConfig, make_contrastive
config = ContrastiveConfig(objective=choose(AnyObjective, "pair_distance")())
method = make_contrastive(config, ("text", "image"), vocab_size=9)
params = jax.eval_shape(method.init, KEY, BATCH)
value, _ = jax.eval_shape(method.loss, params, BATCH, KEY)
assert value.shape == ()
""",
    ),
    "data source": Toy(
        {
            "data/sources/toy.py": '''
"""Images of one colour, and its name."""

import numpy as np

from xmodal_jax.data.source import Source

COLOURS = {"black": 0, "white": 255}


class PlainImages(Source):
    """``size`` images of one colour each."""

    modalities = ("image", "text")

    def __init__(self, *, split: str, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def batch(self, indices):
        names = [list(COLOURS)[i % 2] for i in indices]
        image = np.stack([np.full((8, 8, 3), COLOURS[name], np.uint8) for name in names])
        return {"image": image, "text": np.array(names, object)}
'''
        },
        {
            "data/open.py": [
                (
                    "from xmodal_jax.data.views import",
                    "from xmodal_jax.data.sources.toy import PlainImages\n",
                ),
                (
                    '    "tfds": Form(',
                    '    "plain": Form("", "images of one colour", PlainImages, ("size",)),\n',
                ),
            ]
        },
        """
from xmodal_jax.data.open import DataOptions, open_source
source = open_source("plain", "train", DataOptions(train_size=6))
assert len(source) == 6 and source.batch(np.arange(2))["image"].shape == (2, 8, 8, 3)
""",
    ),
    "fusion": Toy(
        {},
        {
            "nets/fusion.py": [
                (
                    "FusionKind = (",
                    '''class SumOfMeans(Fusion):
    """The sum of the modalities' mean tokens."""

    def fuse(self, streams, keys):
        return output_of_vector(sum(mean_tokens(streams).values()).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class SumOfMeansConfig(FusionPart):
    """The sum of the modalities' mean tokens."""

    name: ClassVar[str] = "sum"
    module: ClassVar[type[Fusion]] = SumOfMeans


''',
                ),
                ("    | MergedAttentionConfig", "    | SumOfMeansConfig\n"),
            ]
        },
        """
from xmodal_jax.core.parts import choose
from xmodal_jax.models.fusion import FusionConfig, make_fusion
from xmodal_jax.nets.fusion import FusionKind
method = make_fusion(FusionConfig(fusion=choose(FusionKind, "sum")()), ("text", "image"), {"label": 3}, vocab_size=9)
params = jax.eval_shape(method.init, KEY, BATCH)
value, _ = jax.eval_shape(method.loss, params, BATCH, KEY)
assert value.shape == ()
""",
    ),
    "multimodal VAE": Toy(
        {},
        {
            "models/vae/multimodal_models.py": [
                (
                    "MultimodalVAEModel = (",
                    '''@dataclasses.dataclass(frozen=True)
class HeavyMoPoEConfig(MoPoEConfig):
    """MoPoE with twice the weight of the divergence."""

    name: ClassVar[str] = "heavy_mopoe"

    def objective(self, inputs, beta):
        return objectives.mopoe(inputs, beta=2.0 * beta)


''',
                ),
                ("    | TELBOConfig", "    | HeavyMoPoEConfig\n"),
            ]
        },
        """
from xmodal_jax.core.parts import choose
from xmodal_jax.models.vae.modalities import sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import MultimodalVAEModel
config = choose(MultimodalVAEModel, "heavy_mopoe")(latent=4)
batch = {"image_0": BATCH["image"], "image_1": BATCH["image"], "index": BATCH["index"]}
method = make_multimodal_vae(config, sizes_of(batch, ("image_0", "image_1"), config)).method
params = jax.eval_shape(method.init, KEY, batch)
value, _ = jax.eval_shape(method.loss, params, {**batch, "step": BATCH["index"]}, KEY)
assert value.shape == ()
""",
    ),
    "kind of data": guide_toy("modality.md", check=POINTS_OF_A_RUN),
    "kind of data with a likelihood of its own": guide_toy("modality.md", part=1, check=COUNTS_EVERYWHERE),
    "GAN objective": Toy(
        {},
        {
            "losses/adversarial.py": [
                (
                    "OBJECTIVES: Mapping",
                    '''def linear_discriminator(real, fake, *, present=None, axis_name=None):
    """``D(fake) - D(real)``."""
    return _loss_where_present(lambda r, f: f - r, present, real, fake)


''',
                ),
                (
                    '        "minimax": Adversarial(',
                    '        "linear": Adversarial(linear_discriminator, non_saturating_generator),\n',
                ),
            ]
        },
        """
from xmodal_jax.losses import OBJECTIVES
from xmodal_jax.models.gan.config import GANConfig
assert GANConfig(objective="linear").objective == "linear"
terms = OBJECTIVES["linear"].discriminator(jnp.ones(3), jnp.zeros(3))
assert terms.tolist() == [-1.0] * 3
""",
    ),
    "GAN penalty": Toy(
        {},
        {
            "losses/penalties.py": [
                (
                    "def lecam(",
                    '''def gradient_size(critic: Critic, x: Examples) -> Float[Array, "batch"]:
    """The norm of the gradient."""
    return _norm(_gradient(critic, x))


''',
                )
            ],
            "models/gan/penalties.py": [
                (
                    "Penalty = GradientPenalty",
                    '''@dataclasses.dataclass(frozen=True)
class GradientSizePenalty(_Options):
    """The norm of the gradient at real images."""

    name: ClassVar[str] = "size"

    def terms(self, inputs: PenaltyInputs) -> Float[Array, "batch"]:
        return penalties.gradient_size(inputs.critic, inputs.real)


''',
                ),
                (" | R1Penalty", " | GradientSizePenalty"),
            ],
        },
        """
from xmodal_jax.core.parts import choose
from xmodal_jax.models.gan.penalties import Penalty
from xmodal_jax.models.gan import ClassCondition, GANConfig, make_gan
config = GANConfig(condition=ClassCondition(), penalty=choose(Penalty, "size")(weight=2.0))
gan = make_gan(config, shape=(16, 16, 3), classes=3)
params, variables = jax.eval_shape(gan.init, KEY, BATCH)
generated, _ = jax.eval_shape(gan.generate, params["generator"], variables, BATCH, KEY)
_, (aux, _) = jax.eval_shape(gan.d_loss, params["discriminator"], variables, BATCH, generated, KEY, 0)
assert "d_penalty" in aux
""",
    ),
    "GAN generator": Toy(
        {},
        {
            "nets/gan.py": [
                (
                    "FirstStageGenerator = (",
                    '''class PlainGenerator(nn.Module):
    """Images of one colour."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, noise, condition, *, keys=None):
        colour = jnp.tanh(nn.Dense(self.shape[-1], name="colour")(concatenate_condition(noise, condition)))
        return jnp.broadcast_to(colour[:, None, None], (len(noise), *self.shape))


@dataclasses.dataclass(frozen=True)
class PlainGeneratorConfig(GeneratorConfig):
    """Images of one colour."""

    name: ClassVar[str] = "plain"

    def build(self, shape, axis_name: AxisName = None):
        return PlainGenerator(shape)


''',
                ),
                ("    | DCGANGeneratorConfig", "    | PlainGeneratorConfig\n"),
            ]
        },
        """
from xmodal_jax.core.parts import choose
from xmodal_jax.nets.gan import Generator
from xmodal_jax.models.gan import ClassCondition, GANConfig, make_gan
config = GANConfig(condition=ClassCondition(), generator=choose(Generator, "plain")(noise=5))
gan = make_gan(config, shape=(16, 16, 3), classes=3)
params, variables = jax.eval_shape(gan.init, KEY, BATCH)
generated, _ = jax.eval_shape(gan.generate, params["generator"], variables, BATCH, KEY)
assert generated["image"].shape == (4, 16, 16, 3)
""",
    ),
}
PROGRAM = """
import contextlib, json, sys, traceback
import jax, jax.numpy as jnp, numpy as np

KEY = jax.random.key(0)
BATCH = {
    "image": jnp.zeros((4, 16, 16, 3), jnp.uint8),
    "text": jnp.ones((4, 5), jnp.int32),
    "text_mask": jnp.ones((4, 5), bool),
    "label": jnp.zeros(4, jnp.int32),
    "index": jnp.arange(4, dtype=jnp.int32),
}
errors = {}
for name, check in json.load(sys.stdin).items():
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(check)
    except Exception:
        errors[name] = traceback.format_exc()
json.dump(errors, sys.stdout)
"""


def add(toy, package):
    """Adds a toy to a copy of the package; returns the files that it touched, new ones included."""
    for name, text in toy.files.items():
        assert not (package / name).exists()
        (package / name).write_text(text.lstrip())
    for name, insertions in toy.edits.items():
        text = (package / name).read_text()
        for anchor, insertion in insertions:
            assert anchor in text, f"{name} has no {anchor!r}"
            text = text.replace(anchor, insertion + anchor, 1)
        (package / name).write_text(text)
    return sorted({*toy.files, *toy.edits})


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """``(files, errors)`` by toy: what adding each touched, and what went wrong when it was used. All are added to one
    copy and used in one process, to import JAX once."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "xmodal_jax", root / "xmodal_jax", ignore=shutil.ignore_patterns("__pycache__"))
    files, errors = {}, {}
    for name, toy in TOYS.items():
        try:
            files[name] = add(toy, root / "xmodal_jax")
        except AssertionError as error:
            errors[name] = str(error)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps({name: TOYS[name].check for name in files}),
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return files, errors | json.loads(done.stdout)


@pytest.mark.parametrize("name", TOYS)
def test_what_is_added_works(name, extended):
    _, errors = extended
    assert name not in errors, errors[name]


def test_the_documentation_counts_the_files(extended):
    files, _ = extended
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \|", text.partition("## Adding something")[2], flags=re.M)
    documented = {name.strip(): int(count) for name, count in rows}
    assert {name: len(touched) for name, touched in files.items()}.items() <= documented.items()
