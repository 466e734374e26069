"""The strategy-selection problem and its solver, free of models and meshes."""
