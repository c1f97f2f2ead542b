"""What an adapter costs at generation time: the short program behind `sdlora benchmark`.

python infer/benchmark.py configs/benchmark-emoji.toml [key=value …]
"""

import sys

from sdlora import benchmark, config
from sdlora.errors import SdloraError


def main(arguments: list[str]) -> int:
    file = arguments[0] if arguments and "=" not in arguments[0] else None
    try:
        settings = config.load(benchmark.BenchmarkConfig, file, arguments[1:] if file else arguments)
        outcome = benchmark.run(settings)
    except SdloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(outcome.markdown.read_text(encoding="utf-8"))
    print(outcome.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
