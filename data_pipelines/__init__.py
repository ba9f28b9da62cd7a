"""Stages from raw conversations to training rows, one module each: `python -m data_pipelines.STAGE --config=…`."""
