"""Installs rlhi_jax: `pip install -e .`. The versions that the tests ran with are in `requirements/`."""

from setuptools import find_packages, setup

JAX = '>=0.10,<0.13'  # 0.10.2 is the last release for Python 3.11

ENDPOINT = ['jsonschema>=4.20,<5', 'openai>=3,<4']
BEAM = ['apache-beam>=2.70,<3']  # needs protobuf below 7 and pyarrow below 26

setup(
    name='rlhi_jax',
    version='0.1.0',
    description='Reinforcement Learning from Human Interaction (arXiv 2509.25137) in JAX',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['rlhi_jax', 'rlhi_jax.*', 'data_pipelines', 'data_pipelines.*']),
    package_data={
        'rlhi_jax.tokenizers': ['layouts/*.jinja'],
        'data_pipelines.text.lexicons': ['*.toml'],
        'data_pipelines.simulator.wordings': ['*.toml'],
        'data_pipelines.teacher.prompts': ['*.jinja'],
    },
    install_requires=[
        'absl-py>=2.1,<3',
        'array_record>=0.8.1,<0.9',
        'babel>=2.15,<3',
        'datasketch>=2,<3',
        'duckdb>=1.4,<3',
        'flax>=0.12,<0.13',
        'gguf>=0.17,<1',
        'grain>=0.2.12,<0.3',
        'httpx2>=2.12,<3',
        'huggingface_hub>=2,<3',
        'importlib_resources>=6,<8',  # tensorflow-datasets imports it and does not ask for it
        f'jax{JAX}',
        'jinja2>=3.1,<4',
        'ml_collections>=1,<2',
        'numpy>=2.2,<3',
        'optax>=0.2.4,<0.3',
        'orbax-checkpoint>=0.12,<0.13',
        'phonenumbers>=9,<10',
        'protobuf>=6.31,<8',
        'py3langid>=0.3,<0.5',
        'pyarrow>=21,<27',
        'python-stdnum>=2,<3',
        'rapidfuzz>=3.9,<4',
        'rich>=13.9,<16',
        'safetensors>=0.6,<1',
        'scikit-learn>=1.6,<2',
        'scipy>=1.15,<2',
        'sentencepiece>=0.2.1,<0.2.3',  # 0.2.3 fails with protobuf below 7.36, which apache-beam needs
        'snowballstemmer>=3,<4',
        'tensorboardX>=2.6.2,<3',
        'tensorflow-datasets>=4.9.9,<5',
        'tokenizers>=0.22,<0.24',
    ],
    extras_require={
        'tpu': [f'jax[tpu]{JAX}'],
        'aot': [f'jax[tpu]{JAX}'],  # libtpu, which compiles for TPUs without one
        'beam': BEAM,
        'endpoint': ENDPOINT,
        'test': [
            *BEAM,
            *ENDPOINT,
            'hypothesis>=6.100,<7',
            f'jax[tpu]{JAX}; sys_platform == "linux" and platform_machine == "x86_64"',
            'pytest>=8,<10',
            'pytest-xdist>=3.6,<4',
            'ruff>=0.17,<0.18',
            'transformers>=5,<6',
        ],
        # What tests compare with or talk to; they skip without it. On Linux PyPI has PyTorch for CUDA only.
        'parity': [
            'accelerate>=1,<2',
            'fastapi>=0.115,<1',
            'peft>=0.18,<1',
            'torch>=2.6,<3',
            'uvicorn>=0.30,<1',
        ],
    },
)
