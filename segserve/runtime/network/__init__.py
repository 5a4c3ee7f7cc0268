"""The network that a record describes, with its weights."""
