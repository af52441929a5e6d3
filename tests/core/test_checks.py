"""Arrays whose shapes do not fit are refused by the name of the argument, before anything is computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Num

from xmodal_jax.core.checks import check_at_least, check_one_of, check_rates, check_shapes, check_sizes
from xmodal_jax.core.collectives import batch_mean
from xmodal_jax.core.random import batch_keys
from xmodal_jax.losses.contrastive import info_nce, sigmoid_loss, triplet_loss
from xmodal_jax.losses.sequence import token_cross_entropy
from xmodal_jax.metrics.classification import (
    class_embeddings,
    confusion_matrix,
    linear_probe,
    predict_classes,
)
from xmodal_jax.metrics.retrieval import ranks
from xmodal_jax.preprocess.audio import log_mel, whisper_log_mel


@check_shapes
def example(
    a: Float[Array, "*rows dim"],
    b: Float[Array, "*rows 3"] | None = None,
    c: Float[Array, "first ... dim"] | None = None,
    scale: float | Num[Array, ""] = 1.0,
):
    return a * scale


def refused(match, function, /, *args, **options):
    with pytest.raises(ValueError, match=match):
        function(*args, **options)


@dataclasses.dataclass
class Options:
    width: int = 2
    layers: int = 3
    bias: bool = False
    weight: float = 0.5
    dropout: float = 0.1
    kernel: str = "imq"


@pytest.mark.parametrize(
    "check, options, message",
    [
        (lambda options: check_at_least(options, 3, "layers", "width"), {}, "width must be at least 3, got 2"),
        (lambda options: check_at_least(options, 0, "weight"), {"weight": -0.5}, "weight must be at least 0, got -0.5"),
        (check_sizes, {"layers": 0}, "layers must be at least 1, got 0"),
        (lambda options: check_rates(options, "dropout"), {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda options: check_rates(options, "dropout"), {"dropout": np.nan}, "dropout must lie in .*, got nan"),
        (
            lambda options: check_one_of(options, kernel=("rbf", "linear")),
            {},
            r"kernel must be one of \('rbf', 'linear'\), got 'imq'",
        ),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_named_with_its_class(check, options, message):
    with pytest.raises(ValueError, match=f"^Options.{message}$"):
        check(Options(**options))


def test_sizes_are_integers_and_not_flags_or_weights():
    check_sizes(Options(bias=False, weight=0.0))
    check_rates(Options(dropout=0.0), "dropout")
    check_one_of(Options(), kernel=("imq",))


def test_a_value_that_a_literal_does_not_list_is_refused():
    x = jnp.ones((4, 3))
    options = dict(temperature=0.5, match=jnp.zeros(4, jnp.int32))
    for name in ("info_nce", "sigmoid_loss"):
        function = {"info_nce": info_nce, "sigmoid_loss": sigmoid_loss}[name]
        bias = {"bias": 0.0} if name == "sigmoid_loss" else {}
        message = f"{name}: duplicates must be one of 'ignore', 'exclude', 'positive', got 'positives'"
        refused(message, function, x, x, duplicates="positives", **options, **bias)
        refused(
            "implementation must be one of 'auto', .*got 'Tiled'",
            function,
            x,
            x,
            implementation="Tiled",
            **options,
            **bias,
        )
    refused(
        "duplicates must be one of 'ignore', 'exclude', got 'positive'",
        triplet_loss,
        x,
        x,
        duplicates="positive",
    )


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, float("nan")])
def test_a_temperature_is_positive(temperature):
    refused(
        "temperature must be above 0", info_nce, jnp.ones((4, 3)), jnp.ones((4, 3)), temperature=temperature
    )


def test_names_are_one_size_in_all_arguments():
    x = lambda *shape: jnp.ones(shape)
    assert example(x(2, 5), x(2, 3), x(9, 7, 7, 5), scale=x()).shape == (2, 5)
    assert example(x(5)).shape == (5,) and example(x(1, 2, 5), b=x(1, 2, 3)).shape == (1, 2, 5)
    refused(r"example: a must be \[\*rows, dim\], got \[\]", example, x())
    refused(r"b must be \[\*rows, 3\], got \[2, 4\]", example, x(2, 5), x(2, 4))
    refused(r"b must be \[\*rows, 3\] with \*rows=\[2\] \(as in a\), got \[1, 3\]", example, x(2, 5), x(1, 3))
    refused(
        r"c must be \[first, ..., dim\] with dim=5 \(as in a\), got \[9, 4\]", example, x(2, 5), c=x(9, 4)
    )
    refused(r"c must be \[first, ..., dim\], got \[5\]", example, x(2, 5), c=x(5))
    # Also while a program is traced, and under a name of its own.
    refused("b must be", jax.jit(example), x(2, 5), x(1, 3))
    assert example.__name__ == "example"


@pytest.mark.parametrize("loss", [info_nce, sigmoid_loss, triplet_loss])
def test_losses_of_pairs_name_the_side_that_does_not_fit(loss):
    options = {} if loss is triplet_loss else {"temperature": 0.1}
    options |= {"bias": 0.0} if loss is sigmoid_loss else {}
    a = jnp.ones((8, 4))
    refused(r"b must be \[batch, dim\] with batch=8 \(as in a\), got \[7, 4\]", loss, a, a[:7], **options)
    refused(r"b must be \[batch, dim\] with dim=4 \(as in a\), got \[8, 3\]", loss, a, a[:, :3], **options)
    refused(r"present must be \[batch\]", loss, a, a, present=jnp.ones((8, 1), bool), **options)
    refused(r"match must be \[batch, \*kinds\]", loss, a, a, match=jnp.arange(7), **options)


def test_weights_are_not_spread_over_the_batch_in_silence():
    refused(
        r"weights must be \[batch\], got \[8, 1\]", batch_mean, jnp.ones(8), jnp.ones((8, 1)), axis_name=None
    )
    refused(r"values must be \[batch\], got \[8, 1\]", batch_mean, jnp.ones((8, 1)), axis_name=None)


def test_metrics_name_what_does_not_fit():
    x, labels = np.ones((8, 4)), np.zeros(8, int)
    refused(
        r"ranks: gallery must be \[items, dim\] with dim=4 \(as in queries\), got \[8, 3\]",
        ranks,
        x,
        x[:, :3],
    )
    refused(r"classes must be \[classes, dim\] with dim=4", predict_classes, x, x[:, :3])
    refused(r"predictions must be \[examples\] with examples=8", confusion_matrix, labels, labels[:1], 2)
    refused(
        r"mask must be \[classes, prompts\] with prompts=1", class_embeddings, x[None].swapaxes(0, 1), x > 0
    )
    refused(r"test_labels must be \[test\] with test=8", linear_probe, x, labels, x, labels[:7])


def test_one_waveform_is_no_batch_of_waveforms():
    for function in (log_mel, whisper_log_mel):
        refused(r"waveform must be \[batch, time\], got \[1600\]", function, jnp.ones(1600))
    refused(
        r"mask must be \[batch, time\] with time=1600", log_mel, jnp.ones((1, 1600)), jnp.ones((1, 9), bool)
    )


def test_texts_and_their_masks_are_equally_long():
    logits, ids = jnp.ones((2, 5, 7)), jnp.ones((2, 6), jnp.int32)
    refused(r"targets must be \[batch, length\] with length=5", token_cross_entropy, logits, ids, ids > 0)


def test_a_batch_without_an_index_is_refused():
    with pytest.raises(ValueError, match=r'no "index", int32 \[B\].*np.arange\(B.*\(fields: image, text\)'):
        batch_keys(jax.random.key(0), {"text": np.ones(3), "image": np.ones(3)})
