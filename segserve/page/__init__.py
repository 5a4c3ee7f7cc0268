"""The page to look at: `segserve page`, a Gradio app that talks to a running server.

`app` lays it out, `asking` sends a picture to the server, `view` turns the answer into what the browser draws, `words`
says in plain words what went wrong, `catalogue` knows which models there are. The browser's part, `assets/`, draws the
answer by itself: opacity, switches and the class under the pointer ask nobody.
"""
