"""How the time of a training step of a multimodal VAE grows with the number of modalities.

Modalities of one kind and size are stacked and go through one vmapped network.

    python -m benchmarks.modalities
    python -m benchmarks.modalities --models mopoe mvtcae mmvae_plus --networks conv --batch-size 128

Steps (loss, gradients, Adam; networks of `benchmarks.cases.polymnist`) are warmed up and timed in turn; the table has
medians. "growth" is the ratio of the time to that with the fewest modalities, divided by the ratio of the numbers of
modalities: 1 means that the time is proportional to the number. Loading data is left out.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.cases.polymnist import SHAPE, config_of
from benchmarks.turns import in_turn
from xmodal_jax.core import runtime
from xmodal_jax.models.vae.modalities import sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.step import make_training


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The steps that are timed."""

    models: tuple[str, ...] = ("mopoe", "mvtcae")
    """Names of multimodal VAEs."""
    networks: tuple[str, ...] = ("conv", "mlp")
    """Encoders and decoders: "conv" or "mlp"."""
    modalities: tuple[int, ...] = (2, 3, 5, 8)
    """Numbers of image modalities, in increasing order."""
    batch_size: int = 32
    """Examples per step."""
    rounds: int = 15
    """Timings of each step, of which the median is shown."""


def make_step(model: str, network: str, count: int, batch_size: int):
    """A function that runs one training step and returns its seconds."""
    rng, names = np.random.default_rng(0), tuple(f"image_{m}" for m in range(count))
    batch = {m: jnp.asarray(rng.integers(0, 256, (batch_size, *SHAPE)).astype(np.uint8)) for m in names}
    batch["index"] = jnp.arange(batch_size)
    config = config_of(model, network)
    method = make_multimodal_vae(config, sizes_of(batch, names, config)).method
    training = make_training(method, Optimizer("adam", learning_rate=1e-4), 10)
    state = jax.jit(training.init)(jax.random.key(0), batch)
    step = jax.jit(training.make_step(None), donate_argnums=0)

    def timed_step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, _ = step(state, batch)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    for _ in range(2):
        timed_step()
    return timed_step


def main(arguments: Arguments) -> None:
    runtime.configure()
    print(
        "| model | networks | modalities | ms per step | against the fewest | growth |\n|---|---|---|---|---|---|"
    )
    for model in arguments.models:
        for network in arguments.networks:
            steps = {m: make_step(model, network, m, arguments.batch_size) for m in arguments.modalities}
            times = in_turn(steps, arguments.rounds)
            few = arguments.modalities[0]
            for m in arguments.modalities:
                ratio = times[m] / times[few]
                ms = f"{1e3 * times[m]:.1f} | {ratio:.2f} | {ratio / (m / few):.2f}"
                print(f"| {model} | {network} | {m} | {ms} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
