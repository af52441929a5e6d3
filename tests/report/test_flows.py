"""What only reports of flows show."""

from tests.models.flow.test_method import make
from xmodal_jax.models.flow import HeunSampler, JumpSampler, MeanFlow
from xmodal_jax.report.flows import samplers_to_compare


def test_samplers_have_the_guidance_of_the_run():
    own = HeunSampler(guidance=3.0, guidance_interval=(0.2, 0.9))
    samplers = samplers_to_compare(make(sampler=own))
    assert list(samplers) == ["euler 1", "euler 4", "euler 12", "heun 25"]
    for sampler in samplers.values():
        assert (sampler.guidance, sampler.guidance_interval) == (3.0, (0.2, 0.9))


def test_mean_velocities_have_samplers_of_few_large_steps():
    samplers = samplers_to_compare(make(objective=MeanFlow(), sampler=JumpSampler(guidance=2.0)))
    assert list(samplers)[:3] == ["jump 1", "jump 2", "jump 4"] and samplers["jump 4"].steps == 4
    assert {sampler.guidance for sampler in samplers.values()} == {2.0}
