"""Compares the served model with the network alone and with other servers: `python -m bench`."""
