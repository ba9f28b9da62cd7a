"""Stages that turn raw conversations into training rows. Run one with `python -m data_pipelines.STAGE --config=…`."""
