"""What a search looks like while it runs, and the commands that watch and stop it; imports neither Ray nor torch."""
