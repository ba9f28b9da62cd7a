"""The train step, and the decoder, rows, workdir and metrics of a training run."""
