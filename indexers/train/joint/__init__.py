"""The training of `starter-joint`, the reranker that reads a text and the tokens of a picture together."""
