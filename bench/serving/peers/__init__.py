"""The measured systems. Each starts in a context, provides one or several peers, and stops
with the context.
"""
