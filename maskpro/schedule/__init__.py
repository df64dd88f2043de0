"""The choice of the next trial and the answer to a report: history, early stopping and study; knows no Ray."""
