"""A profile of train steps names the parts of a DPO step."""

import re

import tiny

SCOPES = ('policy', 'reference', 'chosen', 'rejected')


def test_a_profile_names_the_parts_of_a_step(tmp_path):
    """Operations carry the scope that they were traced under, as do those of its gradient."""
    flags = [*tiny.prepare(tmp_path, pairs=8), '--config.train.batch_rows=1', '--config.train.epochs=5']
    flags += ['--config.train.max_steps=5', '--config.log.profile_steps=3', f'--workdir={tmp_path / "run"}']
    done = tiny.run_program('rlhi_jax.train', *flags)
    assert f'{tmp_path / "run" / "profile"}: profile of 3 steps' in done.stdout
    (trace,) = (tmp_path / 'run' / 'profile').rglob('*.xplane.pb')
    names = set(re.findall(rb'jit\(train_step\)/[\w/(),.>\-]*', trace.read_bytes()))
    for scope in SCOPES:
        assert any(re.search(rf'\b{scope}\b'.encode(), name) for name in names), scope
        if scope != 'reference':  # which has no gradient
            assert any(b'transpose(jvp(%s))' % scope.encode() in name for name in names), scope
