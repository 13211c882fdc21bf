"""`python -m llmdpd_jax` is the `llmdpd` command."""

import sys

from llmdpd_jax.cli.main import main

sys.exit(main())
