"""`python -m gptlife` is the command `gptlife`."""

from gptlife.pipelines.cli.app import main

if __name__ == "__main__":
    main()
