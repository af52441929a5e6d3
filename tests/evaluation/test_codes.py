"""The training of autoencoders within a run, and the codes of a data set."""

import numpy as np
import pytest

from tests.evaluation import painters
from tests.models.flow.test_multimodal import codes_model
from tests.models.vae.multimodal import NAMES, make_batch
from tests.support import assert_trees_identical, shared_programs
from xmodal_jax.core.runtime import Timer
from xmodal_jax.data.bad_examples import BadExamples
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.codes import code_likelihood, encode_source, fit_autoencoders, make_code_loader
from xmodal_jax.models.flow.multimodal import CODES
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import Run


def source(n=24):
    batch = make_batch(n)
    return ArraySource({k: v for k, v in batch.items() if k not in ("index", "step")})


def test_autoencoders_are_a_resumable_training_of_their_own_within_a_run(tmp_path):
    """Resumed after they have ended, they are taken from their checkpoint; their codes are then the same, bit by bit,
    so that the flow goes on with the data that it had. The run's own checkpoints stay apart."""
    method, optimizer = codes_model().method, Optimizer("adamw", learning_rate=1e-2)

    def train(resume, steps):
        config = RunConfig(steps=9, batch_size=8, run_dir=tmp_path / "run", resume=resume)
        loader = Loader(source(), batch_size=8, seed=0)
        timer = Timer()
        with Run.create(config.run_dir, config, resume=resume, tensorboard=False) as run:
            params = fit_autoencoders(method, loader, config, optimizer, run, timer, steps)
        loader.close()
        timer.clock.close()
        return params, encode_source(codes_model(), params, source(), None)

    with shared_programs():
        params, encoded = train(False, 3)
        again, encoded_again = train(True, 3)
    assert_trees_identical(params, again)
    assert_trees_identical(encoded.source.arrays, encoded_again.source.arrays)
    assert_trees_identical(encoded.statistics, encoded_again.statistics)
    assert (tmp_path / "run" / "autoencoders" / "checkpoints").is_dir()
    assert not (tmp_path / "run" / "checkpoints").exists()
    check_codes(encoded)


def check_codes(encoded):
    """Standard units over what is present, 0 elsewhere; batches say what is present."""
    arrays = encoded.source.arrays
    for m in NAMES:
        codes, present = arrays[m + CODES], arrays["present"][m]
        assert not np.any(codes[~present])
        np.testing.assert_allclose(codes[present].mean(axis=0), 0.0, atol=1e-4)
        varies = encoded.statistics[m]["std"] > 1e-3
        np.testing.assert_allclose(codes[present].std(axis=0)[varies], 1.0, atol=1e-2)
    config = RunConfig(batch_size=8)
    loader = make_code_loader(encoded, config, BadExamples())
    batch = next(loader)
    loader.close()
    assert set(batch["present"]) == set(NAMES) and batch[NAMES[0] + CODES].shape == (8, 2, 3)


def test_a_modality_that_no_example_has_is_named(monkeypatch):
    batch = make_batch(4)
    present = {**batch.get("present", {}), NAMES[1]: np.zeros(4, bool)}
    data = ArraySource({**{k: v for k, v in batch.items() if k not in ("index", "step")}, "present": present})
    codes = {m: np.ones((4, 2, 3), np.float32) for m in NAMES}
    there = np.array([[m != NAMES[1] for m in codes_model().modalities]] * 4)
    monkeypatch.setattr("xmodal_jax.evaluation.codes.predict_all", lambda *_, **__: (codes, there))
    with pytest.raises(ValueError, match=f"no example has the modality {NAMES[1]}: leave it out"):
        encode_source(codes_model(), None, data, None)


def test_the_likelihood_of_codes_is_a_mean_over_complete_examples():
    """With its standard error, per dimension; too few of them have none."""
    evaluator = painters.explore(("image", "text"))
    there = np.array([True, False, True, True])
    data = painters.source(("image", "text"), [0, 1, 2, 3], present={"text": there})
    log_density = lambda params, batch: -params * (batch["label"] + 1.0)
    metrics = code_likelihood(log_density, 10, evaluator, 5.0, data)
    nats = np.array([1.0, 3.0, 4.0]) * 5.0 / 10
    assert metrics == pytest.approx(
        {
            "likelihood/code_nats_per_dim": nats.mean(),
            "likelihood/code_nats_per_dim_se": np.std(nats, ddof=1) / np.sqrt(3),
        }
    )
    few = painters.source(("image", "text"), [0, 1, 2, 3], present={"text": there & (np.arange(4) == 0)})
    assert code_likelihood(log_density, 10, evaluator, 5.0, few) == {}
