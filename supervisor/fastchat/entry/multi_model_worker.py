"""FastChat's multi_model_worker, mended.

The flags are those of `fastchat.serve.multi_model_worker`.
"""

import mending

if __name__ == "__main__":
    mending.run_worker("multi_model_worker")
