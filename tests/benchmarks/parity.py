"""How far SmolLM2-135M here is from SmolLM2-135M in transformers: the figures of `tests/test_smollm2.py`.

RLHI_SMOLLM2_GGUF=FILE python tests/benchmarks/parity.py    writes results/parity.json
"""

import ast
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from rlhi_jax.io.files import write_json

RESULTS = Path(__file__).parent / 'results' / 'parity.json'
ROOT = Path(__file__).parents[2]


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        command = [sys.executable, '-m', 'pytest', '-q', 'tests/test_smollm2.py', f'--junitxml={report}']
        subprocess.run(command, cwd=ROOT, check=True)
        found = ElementTree.parse(report).iter('property')
        figures = {each.get('name'): ast.literal_eval(each.get('value')) for each in found}
    if not figures:
        sys.exit('error: every test was skipped: RLHI_SMOLLM2_GGUF must name the GGUF file, and .[test] be installed')
    write_json(RESULTS, figures)
    print(f'wrote {RESULTS}')
