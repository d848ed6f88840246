"""``python -m lightning_modules`` is the ``stllr`` command."""

from lightning_modules.command.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
