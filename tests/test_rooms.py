"""Who may import whom."""

import ast

import pytest
import tiny

LIBRARY = sorted(path.relative_to(tiny.ROOT) for path in tiny.ROOT.glob('rlhi_jax/**/*.py'))


@pytest.mark.parametrize('path', LIBRARY, ids=str)
def test_the_library_stands_alone(path):
    """It imports itself only; `loop`, the conductor, also runs the stages."""
    rooms = {'data_pipelines', 'configs', 'tests', 'launch'} - ({'data_pipelines'} if path.name == 'loop.py' else set())
    imported = set()
    for node in ast.walk(ast.parse((tiny.ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or '').split('.')[0])
    assert not imported & rooms
