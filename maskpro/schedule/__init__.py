"""Which trial comes next and what a report means: a search's history, early stopping and study; knows no Ray."""
