"""Choose backbones, representations and what helps beside them, on the training part alone."""
