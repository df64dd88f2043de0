"""Sampling images, the Frechet distance, and the dense / initial / learned comparison."""
