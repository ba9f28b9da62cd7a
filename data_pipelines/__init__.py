"""The stages from raw conversations to row plans, one module each: `python -m data_pipelines.STAGE --config=…`."""
