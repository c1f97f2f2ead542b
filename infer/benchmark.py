"""What an adapter costs at generation time: `sdlora benchmark` as a program to run.

python infer/benchmark.py configs/benchmark-emoji.toml [key=value …]
"""

import sys

from sdlora.cli import program

if __name__ == "__main__":
    program(["benchmark", *sys.argv[1:]])
