"""Training of dual encoders: the bundled starter model from its sources."""
