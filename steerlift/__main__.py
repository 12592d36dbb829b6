"""`python -m steerlift` is `steerlift`."""

from steerlift.commands.main import main

raise SystemExit(main())
