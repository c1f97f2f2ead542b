"""Generate pictures with any number of adapters: `sdlora generate` as a program to run or to copy from.

python infer/generate.py "a cat, flat emoji" --seed 1-4 --output pictures
python infer/generate.py "a cat, flat emoji" --adapter style.safetensors=0.8 --adapter cat.safetensors=0.5
"""

import typer

from sdlora import cli
from sdlora.commands import generate

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    generate.register(app)
    cli.program(app=app)
