"""The configuration: its schema agrees with the code, and a config that is not valid is refused by key and remedy."""

import subprocess
import sys

import pytest
import tiny
from ml_collections import ConfigDict

from data_pipelines.persona.audit import LEVELS
from data_pipelines.persona.scopes import SCOPES
from rlhi_jax.config import base_config, check_config, parse_variant, reference, settings_identity
from rlhi_jax.config.__main__ import main
from rlhi_jax.config.keys import Key
from rlhi_jax.config.loop_paths import METHODS
from rlhi_jax.config.schema import RENAMED
from rlhi_jax.config.training_keys import REMAT_POLICIES
from rlhi_jax.io.errors import UserError
from rlhi_jax.models import decoder
from rlhi_jax.parallel.sharding import AXES


def test_choices_are_those_of_the_code():
    assert tuple(decoder.REMAT_POLICIES) == REMAT_POLICIES
    assert set(AXES) == set(base_config().mesh)
    registries = {name: part for name, part in reference() if isinstance(part, Key) and part.registry}
    assert registries.keys() == {'objective', 'dpo.variant', 'personas.scope', 'personas.audit'}
    assert registries['personas.scope'].registered() == tuple(SCOPES)
    assert registries['personas.audit'].registered() == tuple(LEVELS)
    assert all(part.default in part.registered() for part in registries.values())
    assert set(METHODS) == set(dict(reference())['loop.method'].choices)


def test_it_is_read_without_jax():
    code = 'import sys, rlhi_jax.config; assert "jax" not in sys.modules and "flax" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, check=True)


def test_the_defaults_are_valid_and_locked():
    config = check_config(base_config())
    with pytest.raises(AttributeError):
        config.ingest.fields.other = 'x'
    with pytest.raises(TypeError):
        config.train.epochs = 'x'


@pytest.mark.parametrize('entry', reference(), ids=lambda entry: entry.name)
def test_every_key_says_what_it_means(entry):
    part = entry.part
    assert part.meaning[0].isupper() or part.meaning[0] in '`N', part.meaning
    assert part.meaning.endswith('.') and '\n' not in part.meaning and '  ' not in part.meaning
    if isinstance(part, Key):
        assert isinstance(part.default, str) or not part.choices
        assert part.allows(part.default)


def test_the_reference_is_printed(capsys):
    main([])
    everything = capsys.readouterr().out
    keys = [name for name, part in reference() if isinstance(part, Key)]
    assert [name for name in keys if f'\n{name} = ' not in f'\n{everything}'] == []
    main(['config.dpo.beta', 'log'])
    some = capsys.readouterr().out
    assert 'dpo.beta = 0.01  (float, above 0)' in some and 'log.profile_steps' in some and 'dpo.variant' not in some
    with pytest.raises(SystemExit):
        main(['nothing'])
    assert 'nothing is not a key' in capsys.readouterr().err


def put(config: ConfigDict, name: str, value) -> None:
    *sections, key = name.split('.')
    for section in sections:
        config = config[section]
    config.unlock()
    if key in config:  # in two steps, past the type check of ConfigDict
        del config[key]
    config[key] = value


VALUES = {
    'objective': ('ppo', "'ppo'", 'one of dpo, hindsight, kto, reward, sft, simpo'),
    'model.dtype': ('int8', "'int8'", 'bfloat16'),
    'model.remat': ('some', 'save_dots'),
    'train.batch_rows': (0, 'at least 1'),
    'optimizer.learning_rate': (float('nan'), 'is nan', 'at least 0'),
    'optimizer.clip': (float('inf'), 'is inf', 'at least 0'),
    'rewrites.min_gain': (float('-inf'), 'finite'),
    'ingest.max_nearly_same': (-1, 'at least 0'),
    'ingest.heldout': (1.0, 'is 1.0', 'below 1'),
    'simulated.users.validation': (-1, 'at least 0'),
    'loop.dpo.epochs': (0, 'at least 1'),
    'personas.first_k': (1, 'at least 2'),
    'dpo.beta': (0.0, 'above 0'),
    'dpo.label_smoothing': (0.5, 'below 0.5'),
    'sampler.top_p': (1.5, 'at most 1'),
    'sampler.min_p': (1.5, 'at most 1'),
    'sampler.repetition_penalty': (0.0, 'above 0'),
    'sampler.stop': (('',), "('',)", 'a tuple of non-empty strings'),
    'rewrites.min_words': (20, '(20)', 'larger than config.rewrites.max_words (0)'),
    'rewrites.max_resemblance': (0.0, 'above 0 and at most 1'),
    'pairs.max_artefact_auc': (1.1, 'at most 1'),
    'beam': ('nothing', "'nothing'", '--runner=DirectRunner'),
    'model.path': ('http://host/v1', 'is a URL', 'config.teacher.path'),
    'candidates.reward_model': ('gs://b/m', 'is a URL'),
    'teacher.path': ('http://user:secret@host/v1', 'username or password'),
    'satisfaction.conditions': ('own,opposing', "'own,opposing'", 'own, other'),
    'train.accumulate': (3, '(3)', 'must divide config.train.batch_rows (32)'),
    'model.logprob_chunk': (100, '(100)', 'must divide config.rows.scored (1024)'),
    'train.epochs': (1.5, 'float', 'of type int'),
    'policy_sees_persona': ('no', 'str', 'of type bool'),
    'train': (3, 'section'),
}


@pytest.mark.parametrize('name', VALUES)
def test_values(name):
    value, *expected = VALUES[name]
    config = base_config()
    put(config, name, value)
    with pytest.raises(UserError) as refused:
        check_config(config)
    assert not [word for word in (f'config.{name}', *expected) if word not in str(refused.value)], refused.value
    assert 'secret' not in str(refused.value)


@pytest.mark.parametrize(
    ('name', 'value'), [('beam', "--runner='x"), ('beam', ' '), ('ingest.similarity', 0.0), ('ingest.similarity', 0.97)]
)
def test_more_values(name, value):
    config = base_config()
    put(config, name, value)
    with pytest.raises(UserError, match=f'config.{name} is'):
        check_config(config)


def test_endpoints():
    config = base_config()
    config.teacher.path = 'http://localhost:8000/v1'
    with pytest.raises(UserError, match='config.teacher.model is empty'):
        check_config(config)
    config.teacher.model = 'm'
    check_config(config)


def test_keys_that_are_unknown_or_missing():
    config = base_config()
    put(config, 'train.epcohs', 1)
    with pytest.raises(UserError, match=r'config\.train\.epcohs is not a known key: .*\(known: accumulate, '):
        check_config(config)
    config = base_config()
    config.train.unlock()
    del config.train.epochs
    with pytest.raises(UserError, match=r'config\.train\.epochs is missing: .*base_config'):
        check_config(config)


@pytest.mark.parametrize('name', RENAMED)
def test_renamed_keys(name):
    config = base_config()
    assert name not in [entry.name for entry in reference()]
    put(config, name, 1)
    news = f'is now config.{RENAMED[name]}' if RENAMED[name] else 'was removed'
    with pytest.raises(UserError, match=f'config.{name} {news}'):
        check_config(config)


def test_variants():
    assert parse_variant('reward,smoke', ('dpo', 'reward')) == ('reward', True)
    assert parse_variant('smoke', ('dpo', 'reward')) == ('dpo', True)
    assert parse_variant('') == ('', False)
    for text, names in {
        'ppo': ('dpo', 'reward'),
        'smoke,dpo': ('dpo',),
        'dpo,': ('dpo',),
        'x': (),
        'smoke,smoke': (),
    }.items():
        with pytest.raises(UserError, match=f'{text!r} is unknown: choose one of .*smoke'):
            parse_variant(text, names)


def test_later_sampler_keys_are_part_of_an_identity_only_if_they_change_replies():
    config = base_config()
    first = dict(slots=32, prompt_tokens=512, new_tokens=512, temperature=1.0, top_p=1.0)
    assert settings_identity(config, 'sampler') == first
    config.sampler.logprobs, config.sampler.stop, config.sampler.min_p = True, ('END',), 0.1
    assert settings_identity(config, 'sampler') == first | dict(stop=['END'], min_p=0.1)
