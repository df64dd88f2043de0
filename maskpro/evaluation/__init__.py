"""Sampling of images, their judging (features, distances, references), and the dense / initial / learned comparison."""
