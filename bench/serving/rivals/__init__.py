"""The measured systems. Each starts in a context, provides one or several contestants, and stops
with the context.
"""
