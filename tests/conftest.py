"""Eight fake CPU devices for tests of meshes; programs that tests start as processes have one, unless they say so."""

import os
import shutil
import tempfile

import jax

os.environ['JAX_PLATFORMS'] = 'cpu'  # of those programs: libtpu, which is here to compile with, would look for a TPU
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
collect_ignore = ['benchmarks']  # programs, some of another environment
LONGEST = ('test_loop.py', 'test_smollm2.py', 'test_simulated.py', 'test_aot.py')  # first, so that no worker ends idle


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_configure(config):
    """What one process compiles no other need compile: tests start hundreds, which run the same few programs."""
    if hasattr(config, 'workerinput'):  # of pytest-xdist: it inherits what is set here
        return
    folder = tempfile.mkdtemp(prefix='compiled_')
    config.add_cleanup(lambda: shutil.rmtree(folder))
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
    os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
