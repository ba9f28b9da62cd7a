"""A worker that scans raw files; `ingest` starts several.

python -m data_pipelines.raw.worker --job=FILE --worker=0 --parent=PID
"""

from pathlib import Path

from data_pipelines.raw.child import run_worker
from data_pipelines.raw.scan import work


def main() -> None:
    run_worker(lambda job, worker: work(Path(job), int(worker)))


if __name__ == '__main__':
    main()
