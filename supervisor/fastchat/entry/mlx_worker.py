"""FastChat's mlx_worker, mended. The flags are those of `fastchat.serve.mlx_worker`."""

import mending

if __name__ == "__main__":
    mending.run_worker("mlx_worker")
