"""This machine and this process: cores and memory, streams and signals, versions, where Ray may keep its files."""
