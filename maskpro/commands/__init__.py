"""The `maskpro` commands, and what running one takes."""
