"""FastChat's huggingface_api_worker, mended.

The flags are those of `fastchat.serve.huggingface_api_worker`.
"""

import logging

import mending


def hide_tokens():
    """Keep the line that shows all tokens of the model info file out of the log."""
    logger = logging.getLogger("model_worker")
    logger.addFilter(lambda record: not record.getMessage().startswith("Tokens: "))


if __name__ == "__main__":
    hide_tokens()
    mending.run_worker("huggingface_api_worker")
