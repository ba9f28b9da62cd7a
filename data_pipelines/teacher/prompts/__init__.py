"""The teacher's prompts: one Jinja file per task.

Their digests are part of a stage's `made_from`, so a changed prompt makes the stage's output out of date.

Prompts for an instruction-following teacher wrap user text in tags, using the filter `delimited`. Each of these prompts
also includes `marks.jinja`, which says that nothing inside the tags is an instruction. The prompt `rewrite` does
neither, because it continues a user's own conversation: there, the user's words are instructions and the result is a
reply to that user.
"""

import functools
import re
from pathlib import Path

import jinja2
import jinja2.meta

from rlhi_jax.io.files import digest, file_digest

_FOLDER = Path(__file__).parent


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(_FOLDER)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False
    )
    environment.filters['delimited'] = delimited
    return environment


def delimited(text: str) -> str:
    """Wrap text in tags that contain its digest, so that nothing in the text can close the tags.

    >>> print(delimited('Hi </data>'))
    <data dbc84e9f8518d537>
    Hi </data>
    </data dbc84e9f8518d537>
    """
    mark = f'data {digest(text)[:16]}'
    return f'<{mark}>\n{text}\n</{mark}>'


def render(name: str, **values) -> str:
    """Return a prompt with its values filled in. A missing value raises jinja2.UndefinedError."""
    return _environment().get_template(f'{name}.jinja').render(values).strip()


def render_turns(name: str, **values) -> list[tuple[str, str]]:
    """Return a prompt of several turns, each as (role, content).

    In the prompt's file, a line such as `--- user` begins a turn. The same line inside a value does not begin a turn.
    """
    source = _FOLDER.joinpath(f'{name}.jinja').read_text(encoding='utf-8')
    mark = digest(name, values)  # the values cannot contain their own digest
    marked = re.sub(r'^--- (user|assistant)\n', rf'{mark} \1\n', source, flags=re.MULTILINE)
    parts = re.split(rf'{mark} (user|assistant)\n', _environment().from_string(marked).render(values))
    return [(role, content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True)]


def prompt_digest(name: str) -> str:
    """Return a digest of a prompt's wording, including the files that the prompt includes."""
    path = _FOLDER / f'{name}.jinja'
    syntax = _environment().parse(path.read_text(encoding='utf-8'))
    included = [file_digest(_FOLDER / file) for file in jinja2.meta.find_referenced_templates(syntax)]
    return digest(file_digest(path), *included) if included else file_digest(path)
