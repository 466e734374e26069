"""The state that a step reads beside its batch, or that Python keeps between steps; and the same
random state for every run of a model."""
