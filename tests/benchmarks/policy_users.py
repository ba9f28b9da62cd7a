"""Does a policy learn users' tastes from their complaints? Satisfaction of simulated users with several policies.

    python tests/benchmarks/policy_users.py --workdir=DIR [--policies=NAME,…]

`launch/evidence.sh` trains the policies and lets gate users judge them: users of the validation split, whose wordings,
topics and combinations of tastes no training user has. Test users are not asked. DIR has a folder of the stage
`satisfaction` for each policy. Writes `results/policy_users.json`: the summary of all policies, and the change in the
gap from each of the first three to each later policy.
"""

import itertools
import json
from pathlib import Path

from absl import flags

from data_pipelines.simulator.summary import summarise
from rlhi_jax.cli.program import run, start
from rlhi_jax.io.files import write_json

RESULTS = Path(__file__).parent / 'results' / 'policy_users.json'


def main() -> None:
    names = flags.FLAGS.policies
    folders = {policy: Path(flags.FLAGS.workdir) / policy for policy in names}
    result = dict(policies=summarise(folders), changes={})
    for earlier, later in itertools.combinations(names, 2):
        if earlier not in names[:3]:
            continue
        summary = summarise({earlier: folders[earlier], later: folders[later]})
        by_taste = {taste: row['gap_change'] for taste, row in summary['by_taste'].items()}
        changes = {name: summary[name] for name in ('gap_change', 'gap_of_valid_change')}
        result['changes'][f'{earlier} → {later}'] = changes | dict(by_taste=by_taste)
    write_json(RESULTS, result)
    print(json.dumps(result['changes'], indent=1, ensure_ascii=False))


if __name__ == '__main__':
    flags.DEFINE_string('workdir', None, 'The folder with a folder of satisfaction for each policy.', required=True)
    flags.DEFINE_list('policies', 'base,sft,dpo', 'The policies, in the order of their training.')
    start()
    run(main)
