"""Eight fake CPU devices for tests of meshes; programs that tests start as processes have one, unless they say so."""

import jax

jax.config.update('jax_num_cpu_devices', 8)
