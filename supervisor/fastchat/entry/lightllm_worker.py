"""FastChat's lightllm_worker, mended. The flags are those of `fastchat.serve.lightllm_worker`."""

import mending

if __name__ == "__main__":
    mending.run_worker("lightllm_worker")
