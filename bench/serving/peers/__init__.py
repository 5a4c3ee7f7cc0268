"""The measured systems: contexts that start one, provide its peers, and stop it."""
