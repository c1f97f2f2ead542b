"""Train an adapter, as `sdlora train` does; can be handed to accelerate.

python train/lora.py configs/emoji-style.toml steps=24 output=runs/short
accelerate launch --num_processes 1 --mixed_precision bf16 train/lora.py configs/emoji-style.toml
"""

import sys

from sdlora.cli import program

if __name__ == "__main__":
    program(["train", *sys.argv[1:]])
