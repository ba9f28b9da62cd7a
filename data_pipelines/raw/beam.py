"""The scan of ingest as a Beam pipeline: chunks of raw files → the same parts, whatever the workers.

    python -m data_pipelines.raw.beam --job=FILE --parent=PID  # started by `ingest` if config.beam is set

`config.beam` holds Beam's own options, as for any pipeline:

    --runner=DirectRunner --direct_running_mode=multi_processing --direct_num_workers=8
    --runner=DataflowRunner --project=P --region=R --temp_location=gs://B/temp --sdk_container_image=IMAGE

`scan.write_part` writes each chunk's part, as without Beam; the stage itself then does the rest, which needs all
conversations at once, on one machine. Workers on other machines need:

- this package;
- the raw files, the salt and the opt-out list under the same paths as here;
- the hidden work folder beside `config.data.conversations`, which the parts are written to.

All these paths must be on a file system that every worker mounts, because paths in a bucket are not read. If a runner
tries a chunk again, the part gets the same bytes under another temporary name and is renamed into place. Finished
parts are kept: a killed run resumes after them, with Beam or without. A job in a cloud outlives a killed run: cancel
it there.

Tested with the direct runner, in one process and in several. Never run on Dataflow.
"""

import shlex
from pathlib import Path

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

from data_pipelines.raw.child import run_worker
from data_pipelines.raw.scan import Chunk, Rules, part_path, read_job, write_part


def write_numbered(numbered: tuple[int, Chunk], rules: Rules, folder: str) -> None:
    """Write the part of one chunk into a folder."""
    number, chunk = numbered
    write_part(chunk, number, rules, part_path(Path(folder), number))


def write_missing(job: Path) -> None:
    """Run the pipeline that writes all missing parts of a job."""
    rules, missing, settings = read_job(job)
    with apache_beam.Pipeline(options=PipelineOptions(shlex.split(settings['beam']))) as pipeline:
        chunks = pipeline | 'Chunks' >> apache_beam.Create(missing) | apache_beam.Reshuffle()
        _ = chunks | 'Scan' >> apache_beam.Map(write_numbered, rules=rules, folder=str(job.parent))


if __name__ == '__main__':
    run_worker(lambda job: write_missing(Path(job)))
