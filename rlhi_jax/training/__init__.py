"""The train step, the decoder and rows of a run, its workdir and its metrics."""
