"""Turns user feedback into claims about what users like, and makes every turn's persona from earlier turns only.

    python -m data_pipelines.personas --config=configs/NAME.py

The stage has four steps:

1. It collects remarks, which are feedback turns that a persona may draw on. `config.personas.scope` determines which
   turns these are (see `data_pipelines/persona/scopes.py`). With 'earlier_conversations', a persona draws on the user's
   conversations that had ended before the current conversation began. With 'first_k_turns', for data without user ids,
   a persona draws on the first turns of the same conversation.
2. For each remark, the teacher writes `config.personas.samples` sentences. Each says what the remark shows about its
   author's tastes. With `config.personas.writer='quotes'`, the remark itself is used as the only sentence.
3. For each remark, the first sentence that satisfies the rules in `data_pipelines/persona/audit.py` becomes a claim.
   `config.personas.audit` determines which rules apply. Other sentences are never stored. If a remark yields no
   claim, it is counted under the rule broken by the remark itself or by its first sentence.
4. The stage writes the persona store's files, with lines in the order of the conversations, which are sorted by user:

    claims.jsonl    every claim, with the turn that it comes from
    users.jsonl     for every user with an id, the persona after their whole history, and all its versions
    records.jsonl   the persona at every user turn that may be mined (used to make training data)

Only one user's history is in memory at a time. `python -m data_pipelines.persona_store` shows and corrects the store.
"""

from data_pipelines.core.stage import Task, define_stage_flags
from rlhi_jax.cli.program import start

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_stage_flags()
    start()

from collections import Counter
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from data_pipelines.core.histories import Author, authors
from data_pipelines.core.inputs import input_folder, read_records
from data_pipelines.core.passes import exhaust, in_blocks
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import Claim, Remark
from data_pipelines.persona.corrections import Corrections, corrected, corrections_path, read_corrections
from data_pipelines.persona.remarks import ask_about, remarks_with_faults, sentence_faults, sentences_about
from data_pipelines.persona.scopes import SCOPES
from data_pipelines.persona.stage import personas_stage
from data_pipelines.persona.store import COUNTED, write_store
from data_pipelines.teacher.endpoint import spending

BLOCK = 1024  # the teacher is asked about this many remarks at a time


def _remarks(config: ConfigDict, corrections: Corrections, counts: Counter) -> Iterator[tuple[Author, list[Remark]]]:
    """Yield every author with the remarks that may become claims. Other remarks are counted by reason."""
    for author in authors(config, input_folder(config, 'follow_ups') / RECORDS):
        remarks = []
        for remark, reason in remarks_with_faults(author, author.records[0], config.personas):
            counts['remarks'] += 1
            if reason:
                counts[f'dropped_{reason}'] += 1
            elif corrections.deletes(remark):
                counts['deleted'] += 1
            else:
                remarks.append(remark)
        yield author, remarks


def _claims(task: Task, corrections: Corrections, counts: Counter) -> Iterator[tuple[Author, list[Claim]]]:
    """Yield every author with their claims, after asking the teacher about all remarks."""
    asks = task.config.personas.writer == 'teacher'
    before_asking = corrections if asks else Corrections()  # the teacher is not asked about deleted remarks
    if asks:
        exhaust(_remarks(task.config, before_asking, Counter()))  # finds damaged input before the teacher is asked
        remarks_by_author = _remarks(task.config, before_asking, Counter())
        for block in in_blocks((remark for _, remarks in remarks_by_author for remark in remarks), BLOCK):
            ask_about(task, block)
    for author, remarks in _remarks(task.config, before_asking, counts):
        sentences = sentences_about(task, [remark['quote'] for remark in remarks])
        claims = _claims_of_author(author, remarks, sentences, task.config.personas, counts)
        yield author, corrected(claims, corrections, counts)
    if asks:
        counts.update(spending(task))


def _claims_of_author(
    author: Author, remarks: Sequence[Remark], sentences: dict[str, list[str]], settings: ConfigDict, counts: Counter
) -> list[Claim]:
    """Return a claim for each remark with a sentence that satisfies the rules.

    Each claim uses the first such sentence. A remark without such a sentence is counted under the rule that its first
    sentence breaks. The argument `settings` is `config.personas`.
    """
    claims = []
    for remark in remarks:
        about = sentences[remark['quote']]
        counts['remarks_without_answer'] += not about
        faults = sentence_faults(author, remark, about, settings)
        if text := next((text for text, reason in faults.items() if not reason), ''):
            claims.append(Claim(**remark, text=text))
        else:
            counts[f'dropped_{next(iter(faults.values()))}'] += 1
    return claims


def _work(task: Task) -> dict[str, int]:
    SCOPES[task.config.personas.scope].check(read_records(task.config, 'conversations'))
    counts: Counter = Counter(dict.fromkeys(COUNTED, 0))
    corrections = read_corrections(corrections_path(task.config))
    return write_store(task, _claims(task, corrections, counts), counts)


STAGE = personas_stage(_work)

if __name__ == '__main__':
    STAGE.main()
