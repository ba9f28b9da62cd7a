"""TFDS data sets of conversations and interactions: examples read back equal the originals, and bytes do not vary."""

from importlib.util import find_spec

import pytest
import tensorflow_datasets as tfds
import tiny
from raw_conversations import config, raw_conversation, records, write_lines

from data_pipelines import datasets, ingest, shards
from data_pipelines.tfds import builders as tfds_builders
from rlhi_jax.data.shards import Shards
from rlhi_jax.io.errors import UserError

PREFERENCES = [dict(prompt='Tee oder 水?', chosen='水', rejected='Tee', weight=0.1), *tiny.preferences(20)]
WORDS = ('bees', 'Käse', '水', '🐝\u200d🔥', 'a\u0000b')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Conversations in three splits and interactions in two, with several shards each."""
    folder = tmp_path_factory.mktemp('run')
    (folder / 'raw').mkdir()
    for split in ('train', 'validation', 'test'):
        conversations = [
            raw_conversation(
                f'{split}{n}',
                f'{split} {n}: what of {word}?',
                'So.\n',
                *['More!', word] * (n % 3),
                user=f'{split}{n % 2}',
            )
            for n, word in enumerate(WORDS)
        ]
        conversations[0] |= dict(hashed_ip=None, language='')
        write_lines(folder / 'raw' / f'{split}.jsonl', conversations)
    c = config(folder, raw=str(folder / 'raw'))
    c.ingest.similarity = 0.9
    ingest.STAGE.run(c)
    c.data.trees_per_shard = 3
    for split, records_of_split in (('train', PREFERENCES), ('validation', tiny.preferences(3, seed=1))):
        write_lines(folder / f'{split}.jsonl', records_of_split)
        c.data.pairs, c.data.shards = str(folder / f'{split}.jsonl'), str(folder / split)
        shards.STAGE.run(c)
    c.data.shards, c.eval.shards = str(folder / 'train'), str(folder / 'validation')
    c.data.datasets = str(folder / 'sets')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds_builders, 'PER_SHARD', 2)
        datasets.STAGE.run(c)
    return c


def files(folder: str) -> dict[str, bytes]:
    folder = tiny.Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def with_margins(run, tmp_path_factory):
    """The same run, but one pair has a margin."""
    folder, c = tmp_path_factory.mktemp('margins'), run.copy_and_resolve_references()
    write_lines(folder / 'pairs.jsonl', [dict(record, margin=0.1 * (n == 4)) for n, record in enumerate(PREFERENCES)])
    c.data.pairs, c.data.shards, c.data.datasets = (str(folder / name) for name in ('pairs.jsonl', 'shards', 'sets'))
    shards.STAGE.run(c)
    datasets.STAGE.run(c)
    return c


def test_conversations_come_back(run):
    written = records(run)
    assert {record['split'] for record in written} == {'train', 'validation', 'test'}
    assert any(not record['user_id'] for record in written)
    for split in ('train', 'validation', 'test'):
        read = tfds.data_source('conversations', data_dir=run.data.datasets, split=split)
        expected = [record for record in written if record['split'] == split]
        assert [tfds_builders.conversation(example, split) for example in read] == expected and len(expected) > 2


@pytest.mark.parametrize('margins', [False, True])
def test_interactions_come_back(request, margins):
    run = request.getfixturevalue('with_margins' if margins else 'run')
    for split, folder in dict(train=run.data.shards, validation=run.eval.shards).items():
        read = tfds.data_source('interactions', data_dir=run.data.datasets, split=split)
        written = Shards(tiny.Path(folder))
        assert list(map(tfds_builders.interaction, read)) == [written[i] for i in range(len(written))]
        if split == 'train':
            assert written[0].pairs[0].weight == 0.1 and not written[0].persona and written[1].persona
            assert len(Shards(tiny.Path(folder)).manifest['shards']) > 2
            trees = map(written.__getitem__, range(len(written)))
            assert {pair.margin for tree in trees for pair in tree.pairs} == ({0.0, 0.1} if margins else {0.0})


def test_a_program_without_this_package_reads_them(run, tmp_path):
    code = (
        'import sys, tensorflow_datasets as tfds\n'
        'read = tfds.data_source("interactions", data_dir=sys.argv[1], split="train")\n'
        'print(read[0]["messages"]["content"][0].decode(), {"data_pipelines", "tensorflow"} & set(sys.modules))'
    )
    command = [tiny.sys.executable, '-c', code, run.data.datasets]
    printed = tiny.subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.split('\n')[0] == 'Tee oder 水? set()'


@pytest.mark.parametrize('beam', ['', '--runner=DirectRunner'], ids=['plain', 'beam'])
def test_the_same_input_gives_the_same_files(run, tmp_path, monkeypatch, beam):
    if beam and not find_spec('apache_beam'):
        pytest.skip('apache-beam is not installed')
    c = run.copy_and_resolve_references()
    c.data.datasets, c.beam = str(tmp_path / 'again'), beam
    monkeypatch.setattr(tfds_builders, 'PER_SHARD', 2)
    counts = datasets.STAGE.run(c)
    assert files(c.data.datasets) == files(run.data.datasets)
    assert sum(n for name, n in counts.items() if name.startswith('conversations')) == len(records(run))
    names = files(c.data.datasets)
    assert 'conversations/1.0.0/conversations-train.array_record-00001-of-00003' in names
    assert tiny.Path(c.data.datasets).stat().st_mode & 0o777 == 0o700


def test_the_program_and_what_it_refuses(run, tmp_path):
    flags = [f'--config={tiny.CONFIG}', f'--config.data.datasets={tmp_path / "sets"}']
    refused = tiny.run_program('data_pipelines.datasets', *flags, check=False)
    assert refused.returncode == 2 and 'config.data.conversations' in refused.stderr
    tiny.run_program('data_pipelines.datasets', *flags, f'--config.eval.shards={run.eval.shards}')
    made, whole = files(str(tmp_path / 'sets' / 'interactions')), files(run.data.datasets + '/interactions')
    validation = {name for name in whole if 'validation' in name}
    assert validation and {name: made[name] for name in validation} == {name: whole[name] for name in validation}
    with pytest.raises(UserError, match='does not contain the data set: build it with'):
        tfds.data_source('conversations', data_dir=tmp_path / 'sets', split='train')
