"""Judge backbones by name and print, as JSON lines, which rules each breaks and why. The first
argument is the Python that the kit is to start.
"""

import json
import sys

from sheen_cli.testing import check

sys.executable, *names = sys.argv[1:]
for name in names:
    found = {finding.rule: finding for finding in check(name)}
    broken = {rule: str(finding) for rule, finding in found.items() if finding.status == "failed"}
    offered = [rule for rule, finding in found.items() if finding.status == "not offered"]
    print(json.dumps({"name": name, "broken": broken, "not offered": offered}), flush=True)
