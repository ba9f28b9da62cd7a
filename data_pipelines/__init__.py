"""Stages that turn raw conversations into training rows, each run by `python -m data_pipelines.STAGE --config=…`."""
