"""Everything that fills an index: sources, the pipeline, and the training of models."""
