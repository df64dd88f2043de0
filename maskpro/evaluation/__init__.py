"""Sampling images, what judges them (features, distances, references), and the dense / initial / learned comparison."""
