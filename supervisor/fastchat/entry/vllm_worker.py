"""FastChat's vllm_worker, mended. The flags are those of `fastchat.serve.vllm_worker`."""

import mending

if __name__ == "__main__":
    mending.run_worker("vllm_worker")
