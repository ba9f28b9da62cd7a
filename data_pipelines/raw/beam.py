"""The scan of ingest as a Beam pipeline: chunks of raw files → the same parts, whatever the workers.

    python -m data_pipelines.raw.beam --job=FILE --parent=PID  # by the stage `ingest`, where config.beam gives options

`config.beam` holds Beam's own options, as one would give them to any pipeline:

    --runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=8
    --runner=DataflowRunner --project=P --region=R --temp_location=gs://B/temp --sdk_container_image=IMAGE

Each chunk becomes a part by `scan.write_part`, which the plain path calls too; what needs all conversations at once is
then done by the stage itself, on one machine. Workers on other machines need this package, and under the paths that
they have here the raw files, the salt and the hidden work folder beside `config.data.conversations`, which parts are
written to: a file system that all of them mount, for paths in a bucket are not read. A runner may try a chunk again:
its part is written in the same bytes, under another temporary name, and renamed into place. Parts that are there are
kept: a killed run goes on after them, with Beam or without. Its job in a cloud goes on too: cancel it there.

Tested with the direct runner, in one process and in several. Never run on Dataflow.
"""

import shlex
from pathlib import Path

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines.raw.scan import Chunk, Rules, part_path, read_job, run_worker, write_part


def write_numbered(numbered: tuple[int, Chunk], rules: Rules, folder: str) -> None:
    """Write the part of one chunk below a folder."""
    number, chunk = numbered
    write_part(chunk, number, rules, part_path(Path(folder), number))


def write_missing(job: Path) -> None:
    """Run the pipeline that writes all parts of a job that are not there yet."""
    rules, missing, told = read_job(job)
    with apache_beam.Pipeline(options=PipelineOptions(shlex.split(told['beam']))) as pipeline:
        chunks = pipeline | 'Chunks' >> apache_beam.Create(missing) | apache_beam.Reshuffle()
        _ = chunks | 'Scan' >> apache_beam.Map(write_numbered, rules=rules, folder=str(job.parent))


if __name__ == '__main__':
    run_worker(lambda job: write_missing(Path(job)))
