"""`python -m workbench.cli`, as `accelerate launch` calls it."""

from workbench.cli import main

if __name__ == "__main__":  # a loader's worker that is spawned imports this file too
    main()
