"""Install rlhi_jax: `pip install -e .`, or `pip install -e .[test]` with what the tests compare against."""

from setuptools import find_packages, setup

setup(
    name='rlhi_jax',
    version='0.1.0',
    description='Reinforcement Learning from Human Interaction (arXiv 2509.25137) in JAX',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['rlhi_jax', 'rlhi_jax.*', 'data_pipelines', 'data_pipelines.*']),
    package_data={'rlhi_jax.tokenizers': ['layouts/*.jinja']},
    install_requires=[
        'absl-py==2.5.1',
        'array_record==0.8.6',
        'flax==0.12.8',
        'gguf==0.19.0',
        'grain==0.2.18',
        'importlib_resources==7.1.0',
        'jax==0.10.2',
        'jinja2==3.1.6',
        'ml_collections==1.1.0',
        'numpy==2.4.6',
        'optax==0.2.8',
        'orbax-checkpoint==0.12.8',
        'protobuf==7.36.2',
        'rich==15.0.0',
        'safetensors==0.8.0',
        'sentencepiece==0.2.3',
        'tensorboardX==2.6.5',
        'tensorflow-datasets==4.9.10',
        'tokenizers==0.23.3',
    ],
    extras_require={
        'tpu': ['jax[tpu]==0.10.2'],
        'test': [
            'accelerate==1.15.0',
            'hypothesis==6.170.15',
            'pytest==9.2.0',
            'pytest-xdist==3.8.0',
            'ruff==0.17.6',
            'torch==2.13.0',
            'transformers==5.23.0',
        ],
    },
)
