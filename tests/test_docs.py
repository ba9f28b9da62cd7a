"""The documentation is true: its links, paths, commands, flags, config keys and measured numbers exist."""

import ast
import functools
import importlib.util
import json
import re
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import pytest

from rlhi_jax.config import base_config, check_config, reference
from rlhi_jax.config.keys import Key

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
BENCHMARKS = ROOT / 'tests/benchmarks/README.md'
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
FOLDERS = ('rlhi_jax', 'data_pipelines', 'configs', 'launch', 'tests/benchmarks')
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob('*.py'))
OWN_CONFIG = 'configs/mine.py'  # the reader's; other placeholders are in capitals, such as configs/NAME.py
NOT_KEYS = {'a.b', 'json'}  # a placeholder in usage lines; config.json is a file
WORKER_FLAGS = {'job', 'worker', 'parent'}  # of processes that the stage ingest starts
FOREIGN = {'uv'}  # run on pods, not needed here


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code(page: Path) -> list[str]:
    """The code of a Markdown page: its fenced blocks, then its inline spans, each on one line.

    Lines that end in a backslash are joined with the next. Diffs are left out: `tests/test_extending.py` applies them.
    """
    fenced = re.compile(r'^```\w*\n(.*?)^```', re.DOTALL | re.MULTILINE)
    text = re.sub(r'^```diff\n.*?^```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL | re.MULTILINE)
    blocks = [block.replace('\\\n', ' ') for block in fenced.findall(text)]
    return blocks + [' '.join(span.split()) for span in re.findall(r'`([^`]+)`', fenced.sub('', text))]


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each `python` command of a text: the module or file that it runs, and the names of its flags.

    >>> list(commands("python launch/local.py --processes=2 -- python -m rlhi_jax.train --config.beam='--runner=A'"))
    [('launch/local.py', ['processes']), ('rlhi_jax.train', ['config.beam'])]
    """
    for line in text.splitlines():
        for part in re.split(r'(?<![\w/-])(?=python\d? )', re.sub(r"'[^']*'", "''", line.split('  #')[0])):
            if run := re.match(r'python\d? (?:-m "?(\w+(?:\.\w+)*)|([\w./]+\.py))(?![\w.$])', part):
                yield run[1] or run[2], re.findall(r'(?<![\w-])--([a-z]\w*(?:\.\w+)*)', part)


def usages(path: Path) -> str:
    """The commands in a Python file's docstring: indented lines, joined with the deeper ones that continue them."""
    lines: list[str] = []
    for line in (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').splitlines():
        if lines and re.match(r' {8}', line):
            lines[-1] += ' ' + line.strip()
        else:
            lines.append(line.strip().split('    ')[0])
    return '\n'.join(lines)


def file_of(program: str, folder: Path = ROOT) -> Path | None:
    """The file that a command runs, where `folder` is the working directory; None for a program of another package."""
    if program.endswith('.py'):
        return folder / program
    if program.split('.')[0] not in ('rlhi_jax', 'data_pipelines'):
        return None
    path = ROOT / program.replace('.', '/')
    return path / '__main__.py' if path.is_dir() else path.with_suffix('.py')


@functools.cache
def flags_of(path: Path) -> frozenset[str]:
    """The flags that a program defines, itself or by functions that it calls, read from source text."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    flags = _defined(tree, path)
    if 'run_worker(' in path.read_text(encoding='utf-8'):
        flags |= WORKER_FLAGS
    return frozenset(flags)


def _defined(node: ast.AST, path: Path) -> set[str]:
    """The flags that the code below a node defines, also through imported functions named `define…`."""
    flags: set[str] = set()
    tree = ast.parse(path.read_text(encoding='utf-8'))
    origins = {
        alias.asname or alias.name: each.module
        for each in ast.walk(tree)
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }
    for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, 'id', '')
        texts = {each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)}
        if name.startswith('DEFINE_') or name == 'add_argument':
            if isinstance(call.args[0], ast.JoinedStr):  # f'--{name}' for each name of a list
                flags |= {each.value for each in ast.walk(tree) if isinstance(each, ast.Constant)}
            elif isinstance(call.args[0], ast.Constant):
                flags.add(call.args[0].value.removeprefix('--'))
        elif name.startswith('define_'):
            origin = file_of(origins[name]) if name in origins else path
            flags |= texts | _defined_by(name, origin)
    return flags


def _defined_by(function: str, path: Path) -> set[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return _defined(node, path)
    return set()


def faults(text: str, folder: Path = ROOT) -> list[str]:
    """What is wrong with the commands of a text; files that are not in this repository's root are in `folder`."""
    wrong = []
    for program, flags in commands(text):
        path = file_of(program, ROOT if '/' in program else folder)
        if re.search('[A-Z]', program):  # a placeholder
            continue
        if path is None:
            if program not in FOREIGN and importlib.util.find_spec(program.split('.')[0]) is None:
                wrong.append(f'{program} is not installed')
        elif not path.exists():
            wrong.append(f'{program} does not exist')
        elif "__name__ == '__main__'" not in path.read_text(encoding='utf-8'):
            wrong.append(f'{program} is not a program')
        else:
            known = flags_of(path)
            wrong += [f'{program} has no flag --{flag}' for flag in flags if flag.split('.')[0] not in known]
    return wrong


@pytest.mark.parametrize('page', [*PAGES, BENCHMARKS], ids=name_of)
def test_commands_of_a_page_exist(page):
    blocks = code(page)
    assert not faults('\n'.join(blocks))
    known = set().union(*(flags_of(path) for path in SOURCES))
    alone = [flag for span in blocks if span.startswith('--') for flag in re.findall(r'^--([\w.]+)', span)]
    assert not [flag for flag in alone if flag.split('.')[0] not in known]


def test_commands_of_scripts_and_docstrings_exist():
    wrong = {name_of(path): faults(path.read_text(encoding='utf-8').replace('\\\n', ' ')) for path in SCRIPTS}
    wrong |= {name_of(path): faults(usages(path), path.parent) for path in SOURCES}
    assert not {name: each for name, each in wrong.items() if each}


def test_paths_exist():
    pattern = re.compile(r'(?<![\w./-])(?:rlhi_jax|data_pipelines|configs|launch|tests|docs|requirements)/[\w./*-]*')
    wrong = []
    for path in [*PAGES, BENCHMARKS, *SCRIPTS, *SOURCES]:
        named = {match.rstrip('.') for match in pattern.findall(path.read_text(encoding='utf-8'))}
        missing = [each for each in named - {OWN_CONFIG} if not list(ROOT.glob(each.rstrip('/')))]
        wrong += [f'{name_of(path)}: {each}' for each in missing if not re.search(r'\b[A-Z]+\b', each)]
    assert not wrong


def test_config_keys_exist():
    names, wrong = {entry.name for entry in reference()}, []
    for path in [*PAGES, BENCHMARKS, *SCRIPTS, *SOURCES]:
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.py':
            text = ast.get_docstring(ast.parse(text)) or ''
        keys = set(re.findall(r'(?<![\w./])config\.((?:[a-z]\w*\.)*[a-z]\w*)', text))
        wrong += [f'{name_of(path)}: config.{key}' for key in keys - names - NOT_KEYS]
    assert not wrong


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_settings_are_allowed(page):
    """Values after `config.KEY=` have the key's type and are within its bound; configs in Python are valid.

    A value may also be a name that a diff of the page adds.
    """
    parts = {entry.name: entry.part for entry in reference()}
    added = '\n'.join(re.findall(r'^\+.*', page.read_text(encoding='utf-8'), re.MULTILINE))
    for key, value in re.findall(r'config\.([a-z][\w.]*)=([\w.+-]+)', '\n'.join(code(page))):
        part = parts[key]
        assert isinstance(part, Key), f'config.{key} is a section'
        if isinstance(part.default, bool):
            assert value in ('True', 'False'), f'config.{key}={value}'
        else:
            assert f"'{value}'" in added or part.allows(type(part.default)(value)), f'config.{key}={value}'
    for block in re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.DOTALL | re.MULTILINE):
        if 'get_config' in block:
            module: dict = {}
            exec(block, module)
            assert check_config(module['get_config']()) != base_config()


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', [*PAGES, BENCHMARKS], ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r'\]\(([^)]+)\)', page.read_text(encoding='utf-8')):
        if '://' not in link:
            file, _, anchor = link.partition('#')
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), link
            assert not anchor or anchor in slugs(target), link


def test_every_page_is_linked_from_a_short_readme():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert not [name_of(page) for page in PAGES[1:] if f']({name_of(page)})' not in text]
    assert len(text.splitlines()) <= 130


def test_the_readme_maps_every_folder():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    folders = [path.parent for package in FOLDERS[:2] for path in (ROOT / package).glob('*/__init__.py')]
    assert folders and not [name_of(folder) for folder in folders if f'`{folder.name}/`' not in text]


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_make_has_the_targets(page):
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.MULTILINE)
    assert set(re.findall(r'^make ([\w-]+)', '\n'.join(code(page)), re.MULTILINE)) <= set(targets)


def numbers(value) -> list[float]:
    if isinstance(value, dict | list):
        return [n for each in (value.values() if isinstance(value, dict) else value) for n in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


def stated(text: str) -> list[str]:
    """Numbers as written, those with a point or an exponent: a count may be a setting, these are measurements.

    >>> stated('rose by 0.19 [−0.05, 0.43] within 2.1e-4, of 3 arms in 26.8 minutes of SmolLM2, by 1.0.')
    ['0.19', '-0.05', '0.43', '2.1e-4', '26.8', '1.0']
    """
    return re.findall(r'(?<![\w.-])-?\d+(?:\.\d+)?e-?\d+|(?<![\w.-])-?\d+\.\d+(?!\w|\.\d)', text.replace('−', '-'))


def as_stated(value: float, text: str) -> str:
    """A number in the precision of the text.

    >>> as_stated(0.00021421, '2.1e-4'), as_stated(-0.0251, '-0.025')
    ('2.1e-4', '-0.025')
    """
    if 'e' in text:
        digits = len(text.split('e')[0].partition('.')[2])
        return re.sub(r'e([-+])0*', lambda sign: 'e' + sign[1].replace('+', ''), f'{value:.{digits}e}')
    return f'{value:.{len(text.partition(".")[2])}f}'


def test_measured_numbers_are_those_of_the_results():
    results = [json.loads(path.read_text()) for path in (ROOT / 'tests/benchmarks/results').glob('*.json')]
    measured = numbers(results)
    section = (ROOT / 'README.md').read_text(encoding='utf-8').split('\n## Results\n')[1].split('\n## ')[0]
    for text, least in ((section, 20), (BENCHMARKS.read_text(encoding='utf-8'), 200)):
        written = stated(text)
        assert len(written) > least
        assert not [number for number in written if not any(as_stated(value, number) == number for value in measured)]


def test_settings_that_the_docs_state_as_defaults():
    """`config.a.b` (default X): the default of that key."""
    for page in PAGES:
        text = ' '.join(page.read_text(encoding='utf-8').split())
        for key, value in re.findall(r'`config\.([\w.]+)` \(default ([^)]+)\)', text):
            assert str(attrgetter(key)(base_config())) == value.replace('−', '-').strip('`'), key
