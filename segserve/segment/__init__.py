"""The implementation of `segserve segment`: images -> requests in flight -> results -> complete
files.

`sources` lists the images. `layout` assigns the result files. `folder` ensures that all results
have the same options. `flight` runs concurrent requests. `run` combines them.
"""
