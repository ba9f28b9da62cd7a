"""Stages from raw conversations to row plans: one module each, run as `python -m data_pipelines.STAGE --config=…`."""
