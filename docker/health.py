"""Exit with 0 if every URL answers with success: the images' health check; they have no curl.

Ray's health pages answer without a token; everything else on the same ports asks for it.
"""

import sys
import urllib.request

TIMEOUT_S = 5

for url in sys.argv[1:]:
    try:
        urllib.request.urlopen(url, timeout=TIMEOUT_S).close()
    except OSError as error:
        sys.exit(f"health: {url} must answer with 200 but got: {error}")
