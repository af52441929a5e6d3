"""The learning rate of a run that is resumed with another number of steps."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import optax
import pytest

from tests.models.gan.test_method import make
from tests.support import assert_trees_identical
from tests.train.test_loop import train
from xmodal_jax.train import gan_step, loop
from xmodal_jax.train.config import RunConfig
from xmodal_jax.train.optim import Optimizer, learning_rate_schedule, make_optimizer
from xmodal_jax.train.schedule import Segment, StepPlan, progress_schedule

COSINE = Optimizer(learning_rate=1e-2, warmup=2.0, final_scale=0.1, ema=0.9)
PEAK, END = 1e-2, 1e-3


def oracle(steps, warmup=2):
    """The rates of one schedule of Optax: a linear warm-up from peak/warmup, then a cosine."""
    after = optax.warmup_cosine_decay_schedule(PEAK / warmup, PEAK, warmup, steps, END)
    return [float(after(k)) for k in range(steps)]


def logged(run, name="train/learning_rate"):
    return [record[name] for record in run.read_metrics() if name in record]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a run of 6 steps; tests copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    _, run = train(folder, optimizer=COSINE)
    np.testing.assert_allclose(logged(run), oracle(6), rtol=1e-5)
    return folder


@pytest.fixture
def run_of_6(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


EXPECTED = {
    "extend": oracle(6) + oracle(10)[6:],
    "restart": oracle(6) + oracle(4),
    "keep": oracle(6) + [oracle(6)[-1]] * 4,
}


@pytest.mark.parametrize("choice", EXPECTED)
def test_each_step_has_the_rate_of_the_chosen_schedule_and_it_is_said_before(run_of_6, capsys, choice):
    result, run = train(run_of_6, optimizer=COSINE, steps=10, resume=True, resume_schedule=choice)
    assert result.steps == 10
    np.testing.assert_allclose(logged(run), EXPECTED[choice], rtol=1e-5)
    # What was logged is what the optimizer multiplied with.
    counts = [x for x in jax.tree.leaves(result.state.opt_state) if x.ndim == 0 and x.dtype == np.int32]
    assert all(int(count) == 10 for count in counts)
    [note] = [line for line in capsys.readouterr().out.splitlines() if "--resume-schedule" in line]
    last, following = EXPECTED[choice][5:7]
    rates = f"learning rate {last:.3g} at step 6, {following:.3g} at step 7"
    assert note.startswith(f"note: --steps is 10, was 6: {rates}; ")
    assert f"(--resume-schedule {choice}; other choices: " in note
    meanings = [
        "as if 10 steps had been asked for from the beginning",
        "a new schedule of 4 steps",
        "it stays",
    ]
    assert [text in note for text in meanings] == [choice == name for name in EXPECTED]


@pytest.mark.parametrize("choice", EXPECTED)
def test_a_resumed_run_that_is_interrupted_again_ends_bit_identical(run_of_6, tmp_path, capsys, choice):
    shutil.copytree(run_of_6, tmp_path / "other")
    options = dict(optimizer=COSINE, steps=10, resume=True, resume_schedule=choice)
    whole, whole_run = train(run_of_6, **options)
    train(tmp_path / "other", **options)
    newest = tmp_path / "other" / "checkpoints" / "newest"
    shutil.rmtree(newest / "10")  # as if it had been killed before: it goes on from step 8
    capsys.readouterr()
    rest, rest_run = train(tmp_path / "other", **options)
    assert rest.resumed == 8
    assert_trees_identical(whole.state, rest.state)
    assert whole_run.read_metrics() == rest_run.read_metrics()
    assert "was 6" not in capsys.readouterr().out  # the checkpoint has the schedule: nothing changes


def test_a_restarted_run_can_be_restarted_and_extended_again(run_of_6, capsys):
    options = dict(optimizer=COSINE, resume=True)
    train(run_of_6, steps=10, resume_schedule="restart", **options)
    _, run = train(run_of_6, steps=13, resume_schedule="extend", **options)
    assert "as if 13 steps had been asked for at step 6, where its schedule began" in capsys.readouterr().out
    np.testing.assert_allclose(logged(run), oracle(6) + oracle(4) + oracle(7)[4:], rtol=1e-5)
    plan = StepPlan.begin(6).resume(6, steps=10, choice="restart").resume(10, steps=13, choice="extend")
    schedule = learning_rate_schedule(COSINE, plan.resume(13, steps=16, choice="restart"))
    rates = [float(schedule(k)) for k in range(10, 16)]  # of the steps since the plan last changed
    np.testing.assert_allclose(rates, oracle(7)[4:] + oracle(3), rtol=1e-5)


def test_the_optimizer_follows_the_plan():
    """Plain gradient descent with gradients of one moves by the rate."""
    plan = StepPlan.begin(6).resume(6, steps=10, choice="restart")
    config = Optimizer(
        "sgd", learning_rate=PEAK, warmup=2.0, final_scale=0.1, b1=0.0, weight_decay=0.0, clip_norm=None
    )
    tx, params = make_optimizer(config, plan), {"kernel": np.ones(1, np.float32)}
    state, moves = tx.init(params), []
    for _ in range(10):
        updates, state = tx.update({"kernel": np.ones(1, np.float32)}, state, params)
        moves.append(-float(updates["kernel"][0]))
    np.testing.assert_allclose(moves, EXPECTED["restart"], rtol=1e-5)


def test_the_networks_of_a_gan_restart_at_the_same_step():
    """The discriminator's own steps begin after the pretraining, whose length stays."""
    plan = StepPlan.begin(10).resume(10, steps=20, choice="restart")
    optimizer = gan_step.GANOptimizer(
        discriminator=dataclasses.replace(COSINE, ema=None), generator=COSINE, pretrain_fraction=0.4
    )
    gan = make()._replace(pretrain_generator=lambda *_, **__: None)
    training = gan_step.make_training(gan, optimizer, plan)
    assert training.initial_steps == 4
    rates = {
        name: [float(schedule(k)) for k in range(20)] for name, schedule in training.learning_rates.items()
    }
    np.testing.assert_allclose(rates["generator_learning_rate"], oracle(10) + oracle(10), rtol=1e-5)
    discriminator = [oracle(6)[0]] * 4 + oracle(6) + oracle(10)
    np.testing.assert_allclose(rates["discriminator_learning_rate"], discriminator, rtol=1e-5)


def test_a_network_that_has_not_begun_starts_its_schedule_with_the_new_number_of_steps():
    plan = StepPlan.begin(10).resume(2, steps=20, choice="keep")
    assert plan.after(4) == StepPlan((Segment(0, 16),), 6)
    assert plan.after(0) == plan


def test_a_plan_comes_back_from_its_file():
    plan = StepPlan.begin(6).resume(4, steps=9, choice="keep").resume(9, steps=12, choice="restart")
    assert StepPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.steps == 12 and plan.resume(11, steps=12, choice="restart") is plan


def test_a_plan_of_one_schedule_is_that_schedule():
    a, b = learning_rate_schedule(COSINE, 10), learning_rate_schedule(COSINE, StepPlan.begin(10))
    assert [float(a(k)) for k in range(10)] == [float(b(k)) for k in range(10)]


def test_a_checkpoint_of_an_earlier_version_goes_on_as_it_did(run_of_6, monkeypatch):
    monkeypatch.setattr(loop.StepPlan, "from_json", None)  # there is no plan to read
    read = loop.Checkpoints.restore

    def without_plan(self, *args, **options):
        state, metadata = read(self, *args, **options)
        return state, {name: value for name, value in metadata.items() if name != "plan"}

    monkeypatch.setattr(loop.Checkpoints, "restore", without_plan)
    _, run = train(run_of_6, optimizer=COSINE, steps=10, resume=True, resume_schedule="restart")
    np.testing.assert_allclose(logged(run), EXPECTED["restart"], rtol=1e-5)


def test_the_default_is_what_the_number_of_steps_says():
    assert RunConfig().resume_schedule == "extend"
    with pytest.raises(ValueError, match="^--resume-schedule restart needs --resume"):
        RunConfig(resume_schedule="restart")


def test_progress_begins_anew_or_stays_as_the_learning_rate_does():
    values = lambda plan, steps: [float(progress_schedule(plan)(k)) for k in range(steps)]
    np.testing.assert_allclose(values(4, 6), [0, 0.25, 0.5, 0.75, 1, 1])  # and no further
    plan = StepPlan.begin(4)
    for choice, expected in {
        "extend": np.arange(8) / 8,
        "restart": [0, 0.25, 0.5, 0, 0.2, 0.4, 0.6, 0.8],
        "keep": [0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
    }.items():
        resumed = plan.resume(3, steps=8, choice=choice)
        np.testing.assert_allclose(values(resumed, 8), expected, rtol=1e-6, err_msg=choice)
