"""`python -m gptlife.pipelines.cli` is the console script `gptlife`."""

from gptlife.pipelines.cli.app import main

if __name__ == "__main__":
    main()
