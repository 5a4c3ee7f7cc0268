"""The work behind `segserve segment`: sources -> requests in flight -> results -> files, whole or not at all.

`sources` lists the images, `layout` says what becomes of each and where, `folder` makes sure that there are results of
the same options alone, `flight` keeps requests under way, and `run` does the work.
"""
