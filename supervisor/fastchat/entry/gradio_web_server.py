"""FastChat's web page. The flags are those of `fastchat.serve.gradio_web_server`."""

import mending

if __name__ == "__main__":
    mending.run("gradio_web_server")
