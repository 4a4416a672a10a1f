"""`python -m promptax`."""

from promptax.cli import main

raise SystemExit(main())
