"""The web page of `segserve page`: a Gradio app for a running server.

`app` defines the layout. `sending` sends an image to the server. `view` converts the response for
the browser. `words` explains errors. `catalogue` lists the models. The scripts in `assets/` draw
the segmentation in the browser. Changes of opacity, visible classes and the pointer's position send
no request.
"""
