"""Finds the remarks (a user's feedback turns) that yielded no claim about the user, and the reasons.

The persona store does not contain these remarks, so the follow-ups are read again.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from data_pipelines.core.histories import authors
from data_pipelines.core.inputs import input_folder
from data_pipelines.core.record_files import RECORDS
from data_pipelines.core.records import Remark
from data_pipelines.persona.corrections import corrections_path, read_corrections
from data_pipelines.persona.remarks import as_sentence, first_lines, prompt_about, remarks_with_faults, sentence_faults
from data_pipelines.persona.store import CLAIMS
from data_pipelines.teacher.endpoint import cached_replies
from rlhi_jax.config import is_endpoint, teacher_path

NOT_STORED = 'by_its_sentences'
REASONS = {
    'empty': 'the remark or the sentence is empty',
    'steering': 'addresses the model or a grader',
    'health': 'mentions health',
    'religion': 'mentions religion',
    'politics': 'mentions politics',
    'sexuality': 'mentions sexuality',
    'personal': 'may identify a person',
    'of_the_task': 'the remark is about the task, not about what replies should be like',
    'does_not_last': 'judging by its words, would not hold for the next, unrelated request',
    'too_long': 'the sentence is too long',
    'unsupported': 'the sentence does not follow from the remark',
    NOT_STORED: "the teacher's sentences broke a rule, but they are not stored; manifest.json counts them by reason",
}


class DroppedRemark(Remark):
    """A remark that yielded no claim."""

    reason: str  # a key of `REASONS`
    sentences: dict[str, str]  # reasons to drop the known sentences about the remark, keyed by sentence


def dropped_remarks(config: ConfigDict) -> Iterator[DroppedRemark]:
    """Yield the remarks that led to no claim. Remarks that a correction deletes are left out.

    If the remark itself broke a rule, no sentence was written about it. The teacher's sentences are included only if
    the teacher is an endpoint and `config.teacher.cache` still contains them.
    """
    follow_ups, claims = input_folder(config, 'follow_ups') / RECORDS, input_folder(config, 'personas') / CLAIMS
    corrections = read_corrections(corrections_path(config))
    for author in authors(config, follow_ups, claims):
        with_claim = {claim['id'] for claim in author.records[1]}
        for remark, reason in remarks_with_faults(author, author.records[0], config.personas):
            if remark['id'] in with_claim or corrections.deletes(remark):
                continue
            sentences: dict[str, str] = {}
            if not reason and (known := _known_sentences(config, remark['quote'])):
                sentences = sentence_faults(author, remark, known, config.personas)
                reason = next(iter(sentences.values()))
            yield DroppedRemark(**remark, reason=reason or NOT_STORED, sentences=sentences)


def _known_sentences(config: ConfigDict, quote: str) -> list[str]:
    if config.personas.writer == 'quotes':
        return [as_sentence(quote)]
    if not is_endpoint(teacher_path(config)):
        return []
    prompt = prompt_about(config, quote)
    return first_lines(cached_replies(config, [prompt])[prompt.id])
