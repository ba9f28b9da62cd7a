"""Lists the programs of a package."""

import ast
from pathlib import Path


def listing(package: Path) -> str:
    """Return a text that lists the programs at the top level of a package, each with its docstring's first line."""
    lines = [f'Run a program with `python -m {package.name}.NAME --help` to see its flags.', '']
    paths = sorted(path for path in package.glob('*.py') if not path.name.startswith('__'))
    width = max(len(path.stem) for path in paths)
    for path in paths:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
        lines.append(f'{path.stem:{width}}  {docstring.splitlines()[0]}')
    return '\n'.join(lines)
