"""The reading of compiled programs, on short ones whose figures are worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo, tpu_pod

ENTRY = """HloModule m, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}}
{computations}
ENTRY %main (p: f32[16,128]) -> f32[16,128] {{
  %p = f32[16,128]{{1,0:T(8,128)}} parameter(0)
{body}
}}
"""


def program(body, computations=""):
    return ENTRY.format(body=body.strip("\n"), computations=computations)


def collectives(body, computations="", devices=8):
    return hlo.collective_bytes(program(body, computations), devices)


# f32[16,128] is 16 * 128 * 4 = 8192 bytes.
ONE = {
    "all-reduce, all chips": (
        "  ROOT %r = f32[16,128]{1,0:T(8,128)} all-reduce(%p), channel_id=1, replica_groups={}, to_apply=%add",
        {"all-reduce": (2 * 7 / 8 * 8192, 1)},
    ),
    "all-reduce of a tuple in groups of 4": (
        "  ROOT %r = (f32[16,128]{1,0:T(8,128)S(1)}, bf16[10]{0}, /*index=2*/pred[]) all-reduce(%p, %p, %p), "
        "channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add",
        {"all-reduce": (2 * 3 / 4 * (8192 + 20 + 1), 1)},
    ),
    "all-gather: the result is the whole array": (
        "  ROOT %g = bf16[32,128]{1,0} all-gather(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}",
        {"all-gather": (1 / 2 * 32 * 128 * 2, 1)},
    ),
    "reduce-scatter: the result is a share": (
        "  ROOT %s = f32[2,128]{1,0} reduce-scatter(%p), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add",
        {"reduce-scatter": (7 / 8 * 8192, 1)},
    ),
    "all-to-all over one axis of a mesh": (
        "  ROOT %a = f32[16,128]{1,0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}",
        {"all-to-all": (3 / 4 * 8192, 1)},
    ),
    "a part of an axis": (
        "  ROOT %a = f32[16,128]{1,0} all-to-all(%p), replica_groups=mesh['a'=8] {'a':(4)2}, dimensions={0}",
        {"all-to-all": (1 / 2 * 8192, 1)},
    ),
    "collective-permute": (
        "  ROOT %c = f32[16,128]{1,0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}",
        {"collective-permute": (8192.0, 1)},
    ),
    "no collective": ("  ROOT %c = f32[16,128]{1,0} negate(%p)", {}),
}


@pytest.mark.parametrize("name", ONE)
def test_one_collective(name):
    body, expected = ONE[name]
    assert collectives(body) == expected


def test_start_and_done_count_once():
    body = """
  %g = (f32[16,128]{1,0}, f32[128,128]{1,0}) all-gather-start(%p), channel_id=1, replica_groups={}, dimensions={0}
  %gd = f32[128,128]{1,0} all-gather-done(%g)
  %r = f32[16,128]{1,0} all-reduce-start(%p), channel_id=2, replica_groups={}, to_apply=%add
  %rd = f32[16,128]{1,0} all-reduce-done(%r)
  %c = (f32[16,128]{1,0}, f32[16,128]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p)
  ROOT %cd = f32[16,128]{1,0} collective-permute-done(%c)"""
    gathered = 128 * 128 * 4
    assert collectives(body) == {
        "all-gather": (7 / 8 * gathered, 1),
        "all-reduce": (2 * 7 / 8 * 8192, 1),
        "collective-permute": (8192.0, 1),
    }


LOOP = """
%inner_cond (s: (s32[], f32[16,128])) -> pred[] {
  %s = (s32[], f32[16,128]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %bound = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%inner_body (s: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %s = (s32[], f32[16,128]) parameter(0)
  %x = f32[16,128]{1,0} get-tuple-element(%s), index=1
  %r = f32[16,128]{1,0} all-reduce(%x), channel_id=1, replica_groups={}, to_apply=%add
  ROOT %t = (s32[], f32[16,128]) tuple(%x, %r)
}

%outer_cond (s: (s32[], f32[16,128])) -> pred[] {
  %s = (s32[], f32[16,128]) parameter(0)
  ROOT %any = pred[] custom-call(%s)
}

%outer_body (s: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %s = (s32[], f32[16,128]) parameter(0)
  ROOT %w = (s32[], f32[16,128]) while(%s), condition=%inner_cond, body=%inner_body
}
"""


def test_a_loop_in_a_loop_multiplies():
    loop = "  ROOT %w = (s32[], f32[16,128]) while(%p), condition=%outer_cond, body=%outer_body"
    known = loop + ', backend_config={"known_trip_count":{"n":"5"}}'
    assert collectives(known, LOOP) == {"all-reduce": (15 * 2 * 7 / 8 * 8192, 15)}
    with pytest.raises(ValueError, match="trip count of w cannot be read"):
        collectives(loop, LOOP)


def test_reduce_scatter_in_a_fusion():
    """The TPU's compiler writes it as an all-reduce and a slice."""
    fused = """
%all-reduce-scatter.1 (x: f32[16,128]) -> f32[2,128] {
  %x = f32[16,128]{1,0} parameter(0)
  %r = f32[16,128]{1,0} all-reduce(%x), channel_id=7, replica_groups={}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %s = f32[2,128]{1,0} dynamic-slice(%r, %zero, %zero), dynamic_slice_sizes={2,128}
}
"""
    body = "  ROOT %f = f32[2,128]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1"
    assert collectives(body, fused) == {"reduce-scatter": (7 / 8 * 8192, 1)}


def test_an_asynchronous_collective_in_fusions_counts_once():
    """It starts in one fusion, is carried on by another inside a loop, and ends in a third."""
    fused = "\n".join(
        f"""
%{name} (x: f32[2,128]) -> f32[16,128] {{
  %x = f32[2,128]{{1,0}} parameter(0)
  %g = f32[16,128]{{1,0}} all-gather(%x), channel_id=7, replica_groups={{}}, dimensions={{0}}
  ROOT %c = f32[16,128]{{1,0}} custom-call(%g), custom_call_target="{target}"
}}"""
        for name, target in (
            ("first", "AsyncCollectiveStart"),
            ("async_collective_fusion.3", "Other"),
            ("last", "AsyncCollectiveDone"),
        )
    )
    loop = LOOP.replace(
        "%r = f32[16,128]{1,0} all-reduce(%x), channel_id=1, replica_groups={}, to_apply=%add",
        "%r = f32[16,128]{1,0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.3",
    )
    body = """
  %f = f32[16,128]{1,0} fusion(%p), kind=kOutput, calls=%first
  %w = (s32[], f32[16,128]) while(%f), condition=%inner_cond, body=%inner_body
  ROOT %e = f32[16,128]{1,0} fusion(%p), kind=kOutput, calls=%last"""
    assert collectives(body, fused + loop) == {"all-gather": (7 / 8 * 8192, 1)}


def test_hbm_counts_operands_and_results_outside_of_fusions():
    body = """
  %n = f32[16,128]{1,0:T(8,128)S(1)} negate(%p)
  ROOT %m = f32[16,128]{1,0:T(8,128)} add(%n, %p)"""
    # S(1) is on the chip: p is read twice, the result written.
    assert hlo.hbm_bytes(program(body)) == 3 * 8192


def test_hbm_of_a_fusion_that_slices_and_updates_in_place():
    fused = """
%fused (stack: f32[16,128], i: s32[]) -> f32[16,128] {
  %stack = f32[16,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,128]{1,0} dynamic-slice(%stack, %i, %i), dynamic_slice_sizes={1,128}
  %new = f32[1,128]{1,0} negate(%row)
  ROOT %u = f32[16,128]{1,0} dynamic-update-slice(%stack, %new, %i, %i)
}
"""
    body = """
  %i = s32[]{:S(6)} constant(3)
  ROOT %f = f32[16,128]{1,0} fusion(%p, %i), kind=kLoop, calls=%fused"""
    assert hlo.hbm_bytes(program(body, fused)) == 2 * 128 * 4


def test_matmul_flops_of_a_scan():
    def run(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    jaxpr = jax.make_jaxpr(run)(jnp.zeros((3, 5)), jnp.zeros((7, 5, 5))).jaxpr
    assert tpu_pod.matmul_flops(jaxpr) == 7 * 2 * 3 * 5 * 5
    assert tpu_pod.matmul_flops(jaxpr, unroll=False) == 2 * 3 * 5 * 5


def test_tables():
    case = tpu_pod.cases(tpu_pod.Config(models=("vit-b16",), slices=("4x4",), implementations=("ring",)))
    assert case == [tpu_pod.Case("vit-b16", "4x4", "ring", 1, 256)]
    assert tpu_pod.table([{"a": "1", "b": "2", "c": "3", "d": "4"}], True).splitlines() == [
        "| a | b | c | d |",
        "| --- | --- | --- | ---: |",
        "| 1 | 2 | 3 | 4 |",
    ]
