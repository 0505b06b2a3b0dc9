"""FastChat's sglang_worker, mended. The flags are those of `fastchat.serve.sglang_worker`."""

import mending

if __name__ == "__main__":
    mending.run_worker("sglang_worker")
