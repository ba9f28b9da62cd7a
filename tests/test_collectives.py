"""What chips send, from hand-written HLO of every form that XLA prints, and from a program compiled here."""

import jax
import jax.numpy as jnp
import pytest

from rlhi_jax.cost.collectives import collective_bytes


def entry(*lines: str) -> str:
    return 'ENTRY %main (x: f32[8]) -> f32[8] {\n' + '\n'.join(f'  {line}' for line in lines) + '\n}'


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('%a = f32[8]{0} all-gather(%x), replica_groups=[2,4]<=[8], dimensions={0}', 32 * 3 / 4),
        ("%a = bf16[8]{0:T(8)} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%f", 2 * 16 * 3 / 4),
        ("%a = f32[8] all-gather(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a'}", 32 / 2),
        ("%a = f32[2]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%f", 8 * 7),
        ('%a = (f32[4]{0}, s32[2]{0}) all-reduce(%x, %y), replica_groups={{0,1}}, to_apply=%f', 2 * 24 / 2),
        ('%a = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}', 32 * 3 / 4),
        ('%a = ((f32[1], f32[2]), (f32[4], f32[8])) all-gather-start(%x, %y), replica_groups={{0,1,2,3}}', 48 * 3 / 4),
        ('%a = (f32[4], f32[8]) all-reduce-start(%x, %y), replica_groups={{0,1}}, to_apply=%f', 2 * 48 / 2),
        ('%a = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}', 32),
    ],
)
def test_forms(line, expected):
    assert sum(collective_bytes(entry(line)).values()) == expected


def test_loops_count_by_their_bound_and_branches_are_followed():
    condition = '%cond (p: s32[]) -> pred[] {\n  %n = s32[] constant(5)\n  ROOT %c = pred[] compare(%p, %n)\n}\n'
    body = '%body (p: s32[]) -> s32[] {\n  %g = f32[4]{0} all-gather(%p), replica_groups={{0,1}}\n}\n'
    loop = '%w = s32[] while(%x), condition=%cond, body=%body'
    assert collective_bytes(condition + body + entry(loop)) == {'all-gather': 5 * 8}
    assert collective_bytes(body + entry('%b = s32[] conditional(%p), true_computation=%body')) == {'all-gather': 8}
    with pytest.raises(ValueError, match='no known trip count'):
        collective_bytes(body + entry(loop))
    with pytest.raises(ValueError, match='f8e4m3'):
        collective_bytes(entry('%a = f8e4m3[8] all-gather(%x), replica_groups={{0,1}}'))


def test_a_compiled_sum_over_devices():
    mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.P(*axes)) for axes in (('x',), ()))

    compiled = jax.jit(lambda a: jnp.sum(a, 0), in_shardings=split, out_shardings=whole)
    text = compiled.lower(jax.ShapeDtypeStruct((8, 16), jnp.float32)).compile().as_text()
    assert collective_bytes(text) == {'all-reduce': 2 * 64 * 7 / 8}
