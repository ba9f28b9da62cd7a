"""Lists the programs in this package.

python -m rlhi_jax
"""

from pathlib import Path

from rlhi_jax.cli.listing import listing

if __name__ == '__main__':
    print(listing(Path(__file__).parent))
