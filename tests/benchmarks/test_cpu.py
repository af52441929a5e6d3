"""The CPU benchmark without its timing: the same work on both sides, and what the report says."""

import importlib
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cpu
from benchmarks.cases import CASES, clip, mopoe, sides
from benchmarks.cases.sides import Row
from tests.support import random_params

TRAINING = ("dcgan", "resnet18", "clip", "vae", "mopoe", "mlp", "attention")
ROW = Row("toy", "the work", "scan", ("eager", "compile"), ("loop",), goal=0.5)
TIMED = {
    "seconds": {
        "jax": {"scan": [0.003, 0.001, 0.002], "loop": [0.004] * 3},
        "torch": {"eager": [0.01] * 3, "another": [0.0001] * 3},
    },
    "failed": {"torch compile": "RuntimeError: no compiler", "torch another": "not of this row"},
    "parameters": {"jax": 12, "torch": 12},
    "flops": {"jax": 3_000_000, "torch": 3_000_000},
}
PEERS = pytest.mark.filterwarnings("ignore")
"""What PyTorch and its libraries warn of is not ours to mend."""
NEEDS = {"resnet18": "torchvision", "clip": "open_clip", "mopoe": "multivae"}


def needs(case):
    # Not pytest.importorskip: the case itself knows how to import them.
    if case in NEEDS and importlib.util.find_spec(NEEDS[case]) is None:
        pytest.skip(f"needs {NEEDS[case]}")


@pytest.mark.slow
@PEERS
@pytest.mark.parametrize("case", TRAINING)
def test_both_sides_do_the_same_work(case, monkeypatch):
    """With fewer examples than the benchmark has: PyTorch counts its operations while it computes."""
    pytest.importorskip("torch")
    needs(case)
    if case != "mopoe":  # whose batch is divided among the subsets
        monkeypatch.setattr(importlib.import_module(f"benchmarks.cases.{case}"), "BATCH", 2)
    ours, theirs = sides.load(case, "jax"), sides.load(case, "torch")
    assert ours.parameters == theirs.parameters
    # open_clip's loss computes the matrix of similarities twice, once for each direction.
    again = 3 * 2 * clip.BATCH**2 * clip.EMBED if case == "clip" else 0
    # The sums over the experts of all subsets are products here, two forward and two backward; sums there.
    sums = 4 * 2 * len(mopoe.SUBSETS) * (mopoe.MODALITIES + 1) * mopoe.BATCH * mopoe.LATENT
    products = sums if case == "mopoe" else 0
    assert ours.flops - products == theirs.flops - again


@pytest.mark.parametrize("case", CASES)
def test_rows_are_unique_and_name_forms_of_jax(case):
    names = [row.name for other in CASES for row in sides.rows(other)]
    assert len(names) == len(set(names))
    if case in ("mlp", "data", "elementwise"):  # small enough to build here
        variants = sides.load(case, "jax").variants
        assert all({row.jax, *row.others} <= set(variants) for row in sides.rows(case))


def test_a_step_in_a_loop_is_a_step_in_a_program():
    def step(state, x):
        return state + x, state * x

    variants = sides.jax_training(step, jnp.float32(1.0), np.arange(5, dtype=np.float32))
    assert {variant.steps for variant in variants.values()} == {5}
    for variant in variants.values():
        variant.run()
        variant.run()  # the state was donated, and is replaced


def test_a_loss_that_is_not_finite_stops_a_form():
    variants = sides.jax_training(lambda s, x: (s, x), jnp.float32(0.0), np.array([1.0, np.nan], np.float32))
    with pytest.raises(FloatingPointError):
        variants["loop"].run()


def test_flops_by_hand():
    from xmodal_jax.nets.conv import Conv, ConvTranspose

    dot = lambda a, b: jax.lax.scan(lambda a, _: (a @ b, None), a, None, length=7)[0]
    ones = lambda *shape: np.ones(shape, np.float32)
    assert sides.jax_flops(dot, ones(3, 5), ones(5, 5)) == 7 * 2 * 3 * 5 * 5
    # What the result does not need is no work.
    assert sides.jax_flops(lambda a, b: (a @ b, a)[1], ones(3, 5), ones(5, 5)) == 0
    x = jnp.asarray(ones(2, 8, 8, 3))
    for module, pixels in ((Conv(5, (4, 4), 2), 4 * 4), (ConvTranspose(5, (4, 4), 2), 8 * 8)):
        params = random_params(module.init, jax.random.key(0), x)
        assert sides.jax_flops(module.apply, params, x) == 2 * 2 * pixels * 4 * 4 * 3 * 5
        # Backward: as much again for the gradient of the kernel; none for that of the input.
        grad = jax.grad(lambda params, module=module: jnp.square(module.apply(params, x)).sum())
        assert sides.jax_flops(grad, params) == 2 * 2 * 2 * pixels * 4 * 4 * 3 * 5


@PEERS
def test_mopoe_is_multivaes():
    torch = pytest.importorskip("torch")
    needs("mopoe")
    torch.manual_seed(0)
    model, dataset = mopoe.make_multivae()
    x = mopoe.images()[0]
    parts = [torch.from_numpy(x[:, m].copy()).reshape(-1, *mopoe.SHAPE) for m in range(mopoe.MODALITIES)]
    torch.manual_seed(1)
    theirs = model(dataset(parts)).loss
    theirs.backward()
    torch.manual_seed(1)
    shape = (mopoe.BATCH, mopoe.LATENT)
    noise = torch.normal(torch.zeros(shape), torch.ones(shape)).numpy()
    ours, grads = jax.jit(jax.value_and_grad(mopoe.loss))(mopoe.from_multivae(model), x, noise)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    for m in range(mopoe.MODALITIES):
        want = model.encoders[f"m{m}"].log_var.weight.grad.numpy().T
        got = grads["params"][f"encoder_{m}"]["log_variance"]["kernel"]
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_summary_sets_the_median_against_the_fastest_peer():
    row = cpu.summarize(ROW, TIMED)
    assert row["jax_ms"] == pytest.approx(2.0)
    assert (row["torch_variant"], row["torch_eager_ms"], row["torch_compile_ms"]) == ("eager", 10.0, None)
    assert row["ratio"] == pytest.approx(0.2) and row["met"] is True
    assert row["failed"] == {"torch compile": "RuntimeError: no compiler"}
    assert "another" not in row["variants_ms"]["torch"]
    slow = cpu.summarize(Row("toy", "the work", "loop", ("eager",), goal=0.3), TIMED)
    assert slow["ratio"] == pytest.approx(0.4) and slow["met"] is False


def test_summary_without_pytorch():
    alone = {**TIMED, "seconds": {"jax": {"scan": [0.5]}}, "failed": {"torch": "PyTorch is not installed"}}
    row = cpu.summarize(ROW, alone)
    assert (row["ratio"], row["met"], row["torch_variant"]) == (None, None, None)
    limited = Row("toy", "the work", "scan", limit=0.4)
    assert cpu.summarize(limited, alone)["met"] is False
    assert "| – | – | – | ≤ 0 s | no |" in cpu.table([cpu.summarize(limited, alone)])


def test_table_and_document(monkeypatch):
    monkeypatch.setattr(cpu.sys, "argv", ["cpu.py", "--cases", "mlp"])
    row = cpu.summarize(ROW, TIMED)
    assert cpu.table([row]).splitlines()[-1] == "| toy | 2 | 10 | – | 0.20 | ≤ 0.50 | yes |"
    about = cpu.describe_run(cpu.Config(cases=("mlp",)))
    assert about["command"] == "python -m benchmarks.cpu --cases mlp"
    text = cpu.document(about, [row], {"vae": "not asked for"})
    for part in (
        "scan 2 (1 to 3)",
        "12 parameters, 0.003 GFLOP",
        "vae: not asked for",
        "RuntimeError: no compiler",
    ):
        assert part in text
    assert json.loads(json.dumps({**about, "rows": [row]}))["rows"][0]["goal"] == 0.5


def test_milliseconds():
    assert [cpu.milliseconds(v) for v in (None, 1234.5, 12.345, 0.0876)] == ["–", "1,234", "12.3", "0.0876"]


def test_unknown_case():
    with pytest.raises(ValueError, match="choose from dcgan"):
        cpu.Config(cases=("gan",))


def test_a_row_has_the_sizes_of_its_own_or_of_its_case():
    row = Row("b", "what", "jax")
    timed = {"jax": {"a": 1, "b": 2}, "torch": 3}
    assert cpu._of_row(row, timed) == {"jax": 2, "torch": 3}
    assert cpu._of_row(row, {"jax": {"a": 1}, "torch": None}) == {"jax": None, "torch": None}
