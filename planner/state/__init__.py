"""What a step reads beside its batch, and what Python keeps between steps; what makes two runs
of a model alike."""
