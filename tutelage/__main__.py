"""``python -m tutelage`` is the same as the command ``tutelage``."""

from tutelage.cli import main

raise SystemExit(main())
