"""Scans raw files for `ingest` in a Beam pipeline. The output is the same for any number of workers.

    python -m data_pipelines.raw.beam --job=FILE --parent=PID  # started by `ingest` if config.beam is set

`config.beam` contains Beam pipeline options, for example:

    --runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=8
    --runner=DataflowRunner --project=P --region=R --temp_location=gs://B/temp --sdk_container_image=IMAGE

For each chunk of the raw files, `scan.write_part` writes one part (a parquet file), just as it does without Beam. The
rest of the stage then runs on one machine, because it needs all conversations at once. Workers on other machines need:

- this package;
- the raw files, the salt and the opt-out list under the same paths as on this machine;
- the hidden work folder next to `config.data.conversations`, where the parts are written.

All these paths must be on a file system that every worker mounts, because paths in a bucket cannot be read. If a
runner retries a chunk, the same bytes are written to a new temporary file, which is then renamed into place. Finished
parts are kept: if a run is killed, the next one, with or without Beam, writes only the missing parts. A cloud job keeps
running after this process is killed, so cancel the job in the cloud.

This module has been tested with the direct runner, in one process and in several, but has never run on Dataflow.
"""

import shlex
from pathlib import Path

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines.raw.child import run_worker
from data_pipelines.raw.scan import Chunk, Rules, part_path, read_job, write_part


def write_numbered(numbered: tuple[int, Chunk], rules: Rules, folder: str) -> None:
    """Scan a numbered chunk, given as a pair (number, chunk), and write the result to one file in a folder."""
    number, chunk = numbered
    write_part(chunk, number, rules, part_path(Path(folder), number))


def write_missing(job: Path) -> None:
    """Run the pipeline that writes all missing parts of the job in a job file."""
    rules, missing, settings = read_job(job)
    with apache_beam.Pipeline(options=PipelineOptions(shlex.split(settings['beam']))) as pipeline:
        chunks = pipeline | 'Chunks' >> apache_beam.Create(missing) | apache_beam.Reshuffle()
        _ = chunks | 'Scan' >> apache_beam.Map(write_numbered, rules=rules, folder=str(job.parent))


if __name__ == '__main__':
    run_worker(lambda job: write_missing(Path(job)))
