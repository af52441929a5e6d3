"""The types that every layer shares: random keys, batches, sequences of tokens, and methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, PyTree
from jaxtyping import Key as KeyArray

Key = KeyArray[Array, ""]
"""One random key (a typed key array of shape ())."""

ExampleKeys = KeyArray[Array, "batch"]
"""One random key per example, shape ``[B]``. Where None is allowed in its place, it means evaluation: no randomness."""

Params = PyTree
"""Parameters of a method: nested dicts of float arrays."""
Batch = Mapping[str, Any]
"""One batch, a mapping of arrays whose first axis is the example.

================  =========  ==================  =====================================================
field             dtype      shape               meaning
================  =========  ==================  =====================================================
``image``         uint8      ``[B, H, W, C]``    pixels 0..255
``video``         uint8      ``[B, F, H, W, C]`` frames
``text``          int32      ``[B, L]``          token ids, 0 is padding
``audio``         int16 or   ``[B, T]``          waveform; int16 is PCM and is divided by 32768 on the
                  float32                        device, float32 lies in [-1, 1]
``vector``        float32    ``[B, D]``          measured quantities, standardised by feature: sensors, columns of a
                                                 table, embeddings; 0 where a value is missing
``series``        float32    ``[B, T, C]``       quantities measured T times, standardised by channel; 0 where a value
                                                 is missing
``KIND_NAME``     as KIND    as KIND             one more modality of a kind: ``image_3``, ``image_sketch``; see
                                                 `kind_of`
``<m>_mask``      bool       ``[B, L]``,         mask of modality ``m``: False where a text, a recording or a series is
                             ``[B, T]`` or       padding, or a value of a vector is missing; of a series where single
                             ``[B, D]``          values are missing it is ``[B, T, C]``
``label``         int32      ``[B]``             class, -1 where unknown
``group``         int32      ``[B]``             equal for examples that show the same picture (the captions of one
                                                 image), which are no negatives of each other; -1 where unknown. Only
                                                 in batches of data where pictures repeat
``index``         int32      ``[B]``             number of the example in the global stream of batches; random keys
                                                 of examples are made from it
``step``          int32      ``[B]``             step of training, the same for all (in training only)
``progress``      float32    ``[B]``             fraction of the training that is over, the same for all (in the
                                                 training of a `GAN` only)
``present``       dict of    ``[B]`` each        ``present[m]`` is False where modality ``m`` is missing; of the
                  bool                           examples that pad a last batch, all are
================  =========  ==================  =====================================================

In place of waveforms ``audio`` may hold the frames ``[B, F, mels]`` of their spectrograms (see
`models.towers.precompute_spectrograms`), with ``audio_mask`` ``[B, F]``.

Some methods take several examples that share inputs, such as Q questions about one image. The other fields then have a
second axis, ``[B, Q, ...]``; where there are fewer than Q, the label is -1 and the mask False.
"""


class Kind(NamedTuple):
    """What a kind of modality is in a batch, and which of the general ways of handling data apply to it.

    This entry is all that data sets, presence, splits and reports need to know about a kind. The encoders of each kind
    are in `nets.encoders.ENCODERS`, what it is in an autoencoder in `models.vae.modalities.ModalityConfigs`; of a kind
    that is ``measured`` both have defaults.
    """

    axes: int
    """Number of axes of its field in a batch, with that of the examples: 4 for images ``[B, H, W, C]``."""
    dtypes: str
    """The types of arrays that a data set may hold, as letters of NumPy's ``dtype.kind``: "f" for floating point."""
    array: str
    """Type and shape of these arrays in words, for messages."""
    array_axes: tuple[int, ...]
    """The numbers of axes that these arrays may have, such as 3 and 4 for images with and without an axis of
    channels."""
    mask_axes: tuple[int, ...] = ()
    """The numbers of axes that its mask may have; empty: it has no mask."""
    measured: bool = False
    """Whether it holds measured quantities: real numbers in any unit, along the last axis. They are standardised by
    feature, with the statistics of the training data, and single values may be missing (NaN)."""
    shown_as: Literal["text", "picture", "sound", "bars", "lines"] = "bars"
    """How reports show an example: the largest deviations as bars, or the values over time as lines, for example."""


KINDS: dict[str, Kind] = {
    "text": Kind(2, "iu", "int32 token ids [N,L], 0 for padding", (2,), mask_axes=(2,), shown_as="text"),
    "image": Kind(4, "u", "uint8 [N,H,W] or [N,H,W,C]", (3, 4), shown_as="picture"),
    "audio": Kind(2, "if", "int16 or float32 in [-1, 1], [N,T]", (2,), mask_axes=(2,), shown_as="sound"),
    "video": Kind(5, "u", "uint8 [N,F,H,W] or [N,F,H,W,C]", (4, 5), shown_as="picture"),
    "vector": Kind(2, "fiub", "numbers [N,D]", (2,), mask_axes=(2,), measured=True, shown_as="bars"),
    "series": Kind(3, "fiub", "numbers [N,T,C]", (3,), mask_axes=(2, 3), measured=True, shown_as="lines"),
}
"""The kinds of modalities by name: the table that a new kind gets an entry in."""
MODALITIES = tuple(KINDS)
"""The names of the kinds of modalities. A modality is named by its kind alone, or ``KIND_NAME``."""


def kind_of(modality: str) -> str:
    """The kind of a modality, a key of `KINDS` or ``label``: its name up to the first underscore.

    ``image``, ``image_3`` and ``image_sketch`` are images.

    Raises:
      ValueError: the name begins with no kind.
    """
    kind = modality.partition("_")[0]
    if kind not in (*MODALITIES, "label"):
        raise ValueError(
            f"{modality!r} is no modality: one is named KIND or KIND_NAME, where KIND is one of "
            f"{', '.join(MODALITIES)} or label"
        )
    return kind


def is_measured(modality: str) -> bool:
    """Whether a modality holds measured quantities, which are standardised: `Kind.measured` of its kind."""
    kind = kind_of(modality)
    return kind in KINDS and KINDS[kind].measured


class Tokens(NamedTuple):
    """Sequences of feature vectors."""

    values: Float[Array, "batch length dim"]
    mask: Bool[Array, "batch length"] | None
    """False where a position is padding; None: nothing is padding."""


class Condition(NamedTuple):
    """What an image is conditioned on; an unconditional model has neither part."""

    vector: Float[Array, "batch dim"] | None = None
    """Embedding of a class or of a whole sentence; None in an unconditional model."""
    words: Tokens | None = None
    """Embeddings of the words of a sentence; None where there is no sentence, only a class or nothing."""


class EncoderSlot(NamedTuple):
    """An encoder (or decoder) within a method that can start from trained parameters."""

    name: str
    """Which trained encoder fits: one of `MODALITIES` by its kind, ``decoder`` (of text) or ``ctc`` (the layer of CTC's
    logits)."""
    path: str
    """Path of its parameters among those of the method, such as ``image/encoder``."""
    fields: tuple[str, ...] = ()
    """The fields of a batch that it encodes: one, or with ``stacked`` one for each copy."""
    head: Literal["none", "pool", "project"] = "none"
    """How much of a pretrained encoder's head it has: nothing, the pooling of its tokens, or also its projection."""
    stacked: bool = False
    """Whether its parameters have a leading axis of copies."""
    new_parts: str = ""
    """Regular expression of the parameters within it that no checkpoint has, such as cross-attention; empty: none."""


class Stage(NamedTuple):
    """The initial stage of a training in two stages. It has its own loss and trains some of the parameters; the second
    stage, with the method's own loss, trains the others alone."""

    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    """The loss of this stage, with the signature of `Method.loss`."""
    fraction: float
    """Length of this stage as a fraction of all steps, in [0, 1]."""
    trains: Callable[[str], bool]
    """Whether this stage trains the parameter of a path (as `core.trees.leaf_names` writes it). What it trains is
    frozen afterwards; the rest is frozen until then."""


class Method(NamedTuple):
    """A learning method as pure functions.

    ``init(key, batch) -> params``: draws the parameters. ``batch`` gives the shapes.
    ``loss(params, batch, key, *, axis_name=None) -> (scalar, aux)``: the loss, a mean over the *global* batch. Under a
    named axis it is this device's share of that mean, so that the sum over devices of the shares (and of their
    gradients) is the value on one device; ``aux`` holds further scalars by the same convention.
    ``predict(params, batch) -> pytree``: the trained model's output, without randomness.
    ``initial_stage``: a first stage of training with another loss; None: one loss for all steps.
    ``load_pretrained(params, batch) -> params``: puts parameters that are read from files in place of some of those
    that ``init`` drew. It runs outside of any compiled program. None: there are none.
    ``finalize_params(params) -> params``: turns trained parameters into those that ``predict`` takes, for example by
    merging adapters; None: they are the same.
    ``encoders``: the encoders that can start from trained parameters.
    ``needs_whole_batch``: whether the loss compares the examples of a batch with each other, so that it is no mean of
    the losses of parts of the batch. It then takes ``chunks=1``, the number of parts that are encoded one after the
    other to save memory; the value is the same.
    """

    init: Callable[..., Params]
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    predict: Callable[..., Any]
    initial_stage: Stage | None = None
    load_pretrained: Callable[[Params, Batch], Params] | None = None
    finalize_params: Callable[[Params], Params] | None = None
    encoders: tuple[EncoderSlot, ...] = ()
    needs_whole_batch: bool = False


class GAN(NamedTuple):
    """A method that trains two networks against each other, generator and discriminator, as pure functions.

    ``params`` is a dict with the parameters of both networks, ``generator`` and ``discriminator``. ``variables`` is a
    dict of the state that changes in training without a gradient, such as running statistics. ``frozen`` is a dict of
    the parameters of trained networks that the losses use and that never change, or None. Losses and aux are this
    device's share of the mean over the global batch, as in `Method`. Four of the functions take keyword arguments,
    written ``...`` below: ``axis_name=None`` and, if ``frozen`` is not None, ``frozen``.

    ``init(key, batch) -> (params, variables)``
    ``generate(generator, variables, batch, key, ...) -> (generated, variables)``: generated examples, a pytree that
    both losses take.
    ``d_loss(discriminator, variables, batch, generated, key, step, ...) -> (loss, (aux, variables))``: the
    discriminator's loss; ``step`` (int32 scalar) is for penalties that are computed only every so many steps.
    ``g_loss(generated, discriminator, variables, batch, key, ...) -> (loss, aux)``: the generator's loss, as a function
    of ``generated``, so that both losses can share one generation.
    ``constrain(discriminator) -> discriminator``: applied to its parameters after each of its steps, such as clipping.
    ``predict(params, batch) -> images``: ``params`` holds ``generator``, ``variables`` and ``frozen`` (if there is
    any), ``batch["noise"]`` the noise ``[B, Z]``. With ``toward_text`` and ``toward_text_mask``, or ``toward_label``,
    and ``blend`` ``[B]`` the condition is interpolated to that other one, by the fraction ``blend``.
    ``d_steps``: steps of the discriminator for each step of the generator, each on its own part of the batch.
    ``pretrain_generator(generator, variables, batch, key, ...) -> (loss, (aux, variables))``: a loss that the generator
    can minimise without the discriminator; None: there is none.
    ``load_pretrained(params, batch) -> params``: as `Method.load_pretrained`, for the parameters of both networks;
    None: training starts from the initial parameters.
    ``frozen``: the parameters of frozen networks by name; None: there are none.
    ``predict_first_stage(params, batch) -> images``: of a generator that refines the images of a frozen one, those
    images, for the arguments of ``predict``; None: there is no such stage.
    ``frozen_by_seed``: the names of the frozen networks that differ between seeds, where several train at once: their
    arrays have a leading axis of seeds.
    """

    init: Callable[..., tuple[Params, dict[str, Any]]]
    generate: Callable[..., tuple[Any, dict[str, Any]]]
    d_loss: Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, Any]]]]
    g_loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    constrain: Callable[[Params], Params]
    predict: Callable[..., Any]
    d_steps: int
    pretrain_generator: (
        Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, Any]]]] | None
    ) = None
    load_pretrained: Callable[[Params, Batch], Params] | None = None
    frozen: dict[str, Params] | None = None
    predict_first_stage: Callable[[Params, Batch], jax.Array] | None = None
    frozen_by_seed: tuple[str, ...] = ()
