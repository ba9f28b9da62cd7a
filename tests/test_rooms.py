"""Check the layout of the packages: programs at the top, folders below, and which module may import which."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

PACKAGES = ('rlhi_jax', 'data_pipelines')
FILES = sorted(path.relative_to(tiny.ROOT) for package in PACKAGES for path in tiny.ROOT.glob(f'{package}/**/*.py'))
PROGRAMS = [path for path in FILES if len(path.parts) == 2 and not path.name.startswith('__')]
# Programs inside folders, which `python -m` also starts.
PROGRAMS_IN_ROOMS = [path for path in FILES if len(path.parts) > 2 and "__name__ == '__main__'" in path.read_text()]
CONDUCTORS = (Path('rlhi_jax/loop.py'), Path('rlhi_jax/check.py'))
READERS = tuple(Path(f'rlhi_jax/{name}.py') for name in ('evaluate', 'online', 'user_rewards'))  # they read records


def module(path: Path) -> str:
    return '.'.join(path.with_suffix('').parts).removesuffix('.__init__')


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((tiny.ROOT / path).read_text())


@functools.cache
def imported_names(path: Path) -> frozenset[str]:
    """Return the full names of all modules that a file imports, and of what it imports from them."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ''} | {f'{node.module}.{alias.name}' for alias in node.names}
    return frozenset(names)


def imports(path: Path) -> frozenset[str]:
    """Return the full names of this project's modules that a file imports, including imports inside functions."""
    return imported_names(path) & set(map(module, FILES))


def room(path_or_module: Path | str) -> str:
    """Return the folder of a module, such as `rlhi_jax.io`. A program counts as its own folder."""
    name = path_or_module if isinstance(path_or_module, str) else module(path_or_module)
    return '.'.join(name.split('.')[:2])


@pytest.mark.parametrize('path', PROGRAMS, ids=str)
def test_a_file_at_the_top_is_a_program(path):
    tree = parsed(path)
    entry = [node for node in tree.body if isinstance(node, ast.If) and '__main__' in ast.unparse(node.test)]
    assert len(entry) == 2, f'{path} cannot be run: move code that programs share into a folder'
    defines_main = any(isinstance(node, ast.FunctionDef) and node.name == 'main' for node in tree.body)
    assert 'start(' in ast.unparse(entry[0]), 'wrong flags are not answered at once'
    assert defines_main or 'STAGE.main()' in ast.unparse(entry[1])
    assert f'python -m {module(path)}' in ast.get_docstring(tree), 'the docstring must show the command'


@pytest.mark.parametrize('path', [path for path in FILES if path.name == '__init__.py'], ids=str)
def test_a_folder_says_its_one_job_in_a_line(path):
    docstring = ast.get_docstring(parsed(path))
    assert docstring and len(docstring.splitlines()[0]) <= 117


def test_nothing_imports_a_program():
    programs = {module(path) for path in (*PROGRAMS, *PROGRAMS_IN_ROOMS)}
    guilty = {str(path): found for path in FILES if path not in CONDUCTORS and (found := imports(path) & programs)}
    assert not guilty, 'only the conductors, loop.py and check.py, may import programs'


def test_rooms_import_each_other_in_no_circle():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        rooms = {room(name) for name in imports(path)} - {room(path), *PACKAGES}
        graph.setdefault(room(path), set()).update(rooms)
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which shows the circle


@pytest.mark.parametrize('path', [path for path in FILES if path.parts[0] == 'rlhi_jax'], ids=str)
def test_the_library_stands_alone(path):
    """The library imports nothing else from this repository, except that some programs run stages or read records."""
    foreign = {'configs', 'tests', 'launch'} | (set() if path in (*CONDUCTORS, *READERS) else {'data_pipelines'})
    assert not {name.split('.')[0] for name in imported_names(path)} & foreign


def test_objectives_know_no_model():
    rooms = {room(name) for path in FILES if path.parts[1] == 'objectives' for name in imports(path)}
    assert rooms <= {'rlhi_jax.objectives'}


def test_config_knows_no_jax():
    code = "import sys, rlhi_jax.config as c; c.base_config(); assert 'jax' not in sys.modules, 'jax was imported'"
    subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, check=True)


@pytest.mark.parametrize('path', FILES, ids=str)
def test_nothing_outgrows_the_head(path):
    """A file has at most 400 lines and a function at most 60. Tables of data may be longer."""
    lines, tree = (tiny.ROOT / path).read_text().splitlines(), parsed(path)
    tables = sum(
        node.end_lineno - node.lineno
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.end_lineno - node.lineno > 20
    )
    assert len(lines) - tables <= 400
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not {node.name: length for node in functions if (length := node.end_lineno - node.lineno + 1) > 60}
