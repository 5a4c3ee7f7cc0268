"""The web page of `segserve page`: a Gradio app for a running server."""
