"""Eight fake CPU devices for tests of meshes; programs that tests start as processes have one, unless they say so."""

import os

import jax

os.environ['JAX_PLATFORMS'] = 'cpu'  # of those programs: libtpu, which is here to compile with, would look for a TPU
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
collect_ignore = ['benchmarks']  # programs, some of another environment
LONGEST = ('test_loop.py', 'test_smollm2.py', 'test_simulated.py', 'test_aot.py')  # first, so that no worker ends idle


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
