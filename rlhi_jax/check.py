"""Checks the data, the teacher and the machine before a loop spends time or money, and says what would stop the loop.

    python -m rlhi_jax.check --config=configs/NAME.py[:variant] [--workdir=DIR]

The check reads a sample of `config.data.raw`, opens the policy, and measures disk and memory. If the teacher is an
endpoint, the check sends it up to 19 short questions, most of which have known answers. From the tokens and time that
these questions take, the check estimates the cost of labels, personas and rewrites. It writes nothing except downloads
from the Hugging Face hub.

The exit status is 0 if the loop can run (possibly with warnings), and 1 if something would stop it.
"""

from rlhi_jax.cli.program import define_flags, load_config, run, start, workdir_path

if __name__ == '__main__':  # parsed before the imports that take seconds
    define_flags()
    start()

import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from data_pipelines import ingest
from data_pipelines.checks.data import check_data
from data_pipelines.checks.findings import Findings
from data_pipelines.checks.machine import check_machine
from data_pipelines.checks.teacher import check_teacher
from rlhi_jax.config import require
from rlhi_jax.config.loop_paths import users_talk, with_paths
from rlhi_jax.io.errors import UserError


def check(config: ConfigDict, workdir: Path) -> Findings:
    """Check the data, the machine and the teacher, and return the findings.

    The teacher is checked only if the other checks find nothing that would stop the loop.
    """
    findings, sample = Findings(), None
    if not users_talk(config):
        try:
            rules = ingest.rules_of(with_paths(config, workdir))
            sample = check_data(config, ingest.raw_files(config), rules, findings)
        except UserError as error:
            findings.stop(str(error))
    check_machine(config, workdir, sample, findings)
    if sample and not findings.stops:  # ask no questions until the other checks have passed
        check_teacher(config, sample, findings)
    return findings


def main() -> None:
    config = load_config(flags.FLAGS.config)
    require(config, 'model.path')
    workdir = workdir_path(flags.FLAGS.workdir) if flags.FLAGS.workdir else Path.cwd()
    findings = check(config, workdir)
    print('\n'.join(findings.facts))
    for problem in findings.problems:
        print(f'{"STOPS" if problem.stops else "warning"}: {problem.text}')
    if findings.stops:
        print(f'{len(findings.stops)} problems would stop the loop.')
        sys.exit(1)
    print('Nothing would stop the loop.')


if __name__ == '__main__':
    run(main)
