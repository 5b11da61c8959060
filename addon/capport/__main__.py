"""`python -m capport`, the same as `capport`."""

import sys

from capport.cli import main

sys.exit(main())
