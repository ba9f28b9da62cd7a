"""A tiny model with a byte-level tokenizer, and preferences to train it on; made and read by the real code."""

import contextlib
import dataclasses
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import tokenizers

from data_pipelines.core.journal import work_folder
from data_pipelines.preferences.layouts import parse_preferences
from rlhi_jax.data.tree import Preference
from rlhi_jax.io.files import write_json
from rlhi_jax.models.checkpoints import describe_model, params_digest, save_params
from rlhi_jax.models.decoder import Decoder
from rlhi_jax.models.parameters import init_params
from rlhi_jax.models.spec import ModelSpec
from rlhi_jax.tokenizers import load_tokenizer
from rlhi_jax.tokenizers.template import extend, layouts, special_tokens

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'tests' / 'tiny_config.py'
SPEC = ModelSpec('llama', 264, 32, 64, 2, 8, 8, 8, 512, tied_embeddings=True)
LOOP_SPEC = dataclasses.replace(SPEC, max_positions=2048)
STOP = tuple('abcdefghijklm')  # stop strings, so that a random model's replies end
WORDS = [
    'the',
    'a',
    'cat',
    'dog',
    'sits',
    'runs',
    'under',
    'over',
    'big',
    'small',
    'tree',
    'house',
    'quickly',
    'and',
    'then',
    'never',
    'always',
    'sings',
]


def write_tokenizer(folder: Path, *, persona_in: str = 'user') -> None:
    """One token per byte, and ChatML's control tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*specials, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / 'tokenizer.json'))
    names = dict(bos_token='<|im_start|>', eos_token='<|im_end|>', pad_token='<|endoftext|>')
    write_json(folder / 'tokenizer_config.json', dict(tokenizer_class='PreTrainedTokenizerFast', **names))
    source = layouts()['chatml'].read_text(encoding='utf-8')
    template = extend(source, load_tokenizer(folder), special_tokens(folder), placement=persona_in)
    (folder / 'chat_template.jinja').write_text(template, encoding='utf-8')


def write_model(folder: Path, *, seed: int = 0, spec: ModelSpec = SPEC) -> Path:
    """A model folder with random parameters."""
    write_tokenizer(folder / 'tokenizer')
    params = jax.device_get(nn.unbox(init_params(Decoder(spec), jax.random.key(seed))))
    save_params(folder / 'params', params)
    tokens = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    describe_model(folder, spec, weights=params_digest(params), tokens=tokens, source='tiny')
    return folder


def write_policy_and_reward_model(folder: Path) -> tuple[Path, Path]:
    """Two models of one size, with room for a loop's prompts."""
    reward = dataclasses.replace(LOOP_SPEC, head='reward')
    return write_model(folder / 'policy', seed=6, spec=LOOP_SPEC), write_model(folder / 'reward', seed=7, spec=reward)


def preferences(count: int, *, seed: int = 0) -> list[dict]:
    """Random preferences of a few users, with one or two turns of context; some pairs share replies."""
    rng = np.random.default_rng(seed)

    def text(longest: int) -> str:
        return ' '.join(rng.choice(WORDS, rng.integers(1, longest)))

    records = []
    for i in range(count):
        prompt = [{'role': 'user', 'content': text(5)}]
        chosen, rejected = text(6), text(6) + '!'
        user = f'user{rng.integers(4)}'
        common = dict(user_id=user, persona=f'{user} likes {WORDS[len(user) + int(user[-1])]}.')
        records.append(dict(common, id=f'p{i}', prompt=prompt, chosen=_reply(chosen), rejected=_reply(rejected)))
        if rng.random() < 0.4:  # the conversation continues after the rejected reply
            prompt = [*prompt, *_reply(rejected), {'role': 'user', 'content': text(4)}]
            records.append(
                dict(common, id=f'p{i}b', prompt=prompt, chosen=_reply(text(5)), rejected=_reply(text(5) + '?'))
            )
    return records


def parsed(record: dict) -> Preference:
    """The preference in a record that contains one."""
    (preference,) = parse_preferences(record, '', Counter())
    return preference


def branching_preferences(rng: np.random.Generator) -> list[dict]:
    """Random preferences; most continue after the rejected reply of an earlier one, so that contexts grow long."""

    def text(role: str, mark: str = '') -> dict:
        return {'role': role, 'content': ' '.join(rng.choice(WORDS, rng.integers(1, 6))) + mark}

    records: list[dict] = []
    for i in range(int(rng.integers(1, 12))):
        prompt, user = [text('user')], f'user{rng.integers(2)}'
        if records and rng.random() < 0.6:
            earlier = records[int(rng.integers(len(records)))]
            prompt, user = [*earlier['prompt'], *earlier['rejected'], text('user')], earlier['user_id']
        replies = dict(chosen=[text('assistant')], rejected=[text('assistant', '!')])
        if rng.random() < 0.2:
            replies['rejected'] += [text('user'), text('assistant', '?')]
        records.append(dict(id=f'p{i}', prompt=prompt, user_id=user, persona=f'{user} likes tea.', **replies))
    return records


def _reply(content: str) -> list[dict]:
    return [{'role': 'assistant', 'content': content}]


def write_preferences(path: Path, count: int, *, seed: int = 0) -> Path:
    lines = (json.dumps(record) for record in preferences(count, seed=seed))
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return path


def run_program(module: str, *flags: str, env: dict[str, str] | None = None, check: bool = True, **options):
    """Run one of the project's programs in a process, as a user would."""
    command = [sys.executable, '-m', module, *flags]
    return subprocess.run(
        command, cwd=ROOT, env=env, check=check, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )


def prepare(folder: Path, *, pairs: int = 24, seed: int = 0) -> list[str]:
    """A model, shards and a row plan in `folder`; returns the flags that name them."""
    write_model(folder / 'model')
    write_preferences(folder / 'pairs.jsonl', pairs, seed=seed)
    flags = [
        f'--config={CONFIG}',
        f'--config.model.path={folder / "model"}',
        f'--config.data.pairs={folder / "pairs.jsonl"}',
        f'--config.data.shards={folder / "shards"}',
        f'--config.data.rows={folder / "rows"}',
    ]
    run_program('data_pipelines.shards', *flags)
    run_program('data_pipelines.rows', *flags)
    return flags


def journaled(folder: Path) -> list:
    """The keys in the journal of the stage that writes a folder."""
    path = next(work_folder(folder).glob('*.sqlite'), None)
    if path is None:
        return []
    with contextlib.closing(sqlite3.connect(path)) as file:
        tables = {name for (name,) in file.execute('SELECT name FROM sqlite_master')}
        rows = file.execute('SELECT key FROM results') if 'results' in tables else []
        return [json.loads(key) for (key,) in rows]
