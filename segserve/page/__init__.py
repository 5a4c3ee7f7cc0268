"""The web page of `segserve page`: a Gradio app for a running server.

`app` defines the layout, and `launch` serves it on this machine. `server` sends an image to the
server and lists its models. `view` converts the response for the browser, and explains errors. The
scripts in `assets/` draw the segmentation in the browser.
"""
