"""FastChat's model_worker, mended. The flags are those of `fastchat.serve.model_worker`."""

import mending

if __name__ == "__main__":
    mending.run_worker("model_worker")
